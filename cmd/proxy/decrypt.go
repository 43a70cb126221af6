package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/verify"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

func decryptCommand() *cobra.Command {
	var o decryptOptions
	c := &cobra.Command{
		Use:   "decrypt s3://BUCKET/KEY",
		Short: "Read one object directly from the store, without a proxy",
		Args:  oneArgument("s3://bucket/key"),
	}
	config := configFlag(c)

	flags := c.Flags()
	flags.StringVarP(
		&o.output,
		"output",
		"o",
		"",
		"`FILE` to write; - for standard output (default: the last segment of the key)",
	)

	flags.StringVar(
		&o.customerKey,
		"sse-customer-key",
		"",
		"`FILE` with the customer key of the object (SSE-C): raw, hex, base64 or PEM",
	)
	flags.StringVar(
		&o.as,
		"as",
		"",
		"`s3://BUCKET/KEY` under which the object was put, if it was moved or copied within the store; "+
			"you vouch that it may be read under its present name",
	)
	declareRecovery(flags, &o.recovery)
	flags.StringVar(
		&o.devData, "dev-data", "",
		"`DIRECTORY` of cmekproxy dev to read from, instead of a configuration",
	)
	flags.StringVar(&o.version, "version-id", "", "`ID` of the version to read (default: the current one)")

	flags.BoolVar(
		&o.anyKey,
		"any-key",
		false,
		"also read objects under keys that no rule names for the bucket; "+
			"anyone who can use such a key may have made the object",
	)

	flags.StringVar(&o.format, "format", "text", "text, or json (one object); for a file, not standard output")

	c.RunE = func(c *cobra.Command, args []string) error {
		target, err := parseObject(args[0])
		if err != nil {
			return err
		}
		if err := o.checkFormat(); err != nil {
			return err
		}

		was := target
		if o.as != "" {
			if was, err = parseObject(o.as); err != nil {
				return fmt.Errorf("--as: %w", err)
			}
		}

		if err := o.setPaths(target); err != nil {
			return err
		}
		d, done, err := openToDecrypt(c.Context(), *config, o, target, c.ErrOrStderr())
		if err != nil {
			return err
		}
		defer done()

		r, err := d.decryptRun(c, target, was, o)
		if err == nil {
			err = r.run(c.Context(), o, c.OutOrStdout())
		}
		if err != nil {
			return fmt.Errorf("s3://%s/%s: %w", target.Bucket, target.Key, err)
		}
		return nil
	}

	return c
}

type decryptOptions struct {
	output, customerKey, version, as string
	recovery, devData                string
	anyKey                           bool
	format                           string
}

func (o *decryptOptions) checkFormat() error {
	switch {
	case o.format != "text" && o.format != "json":
		return usageError{fmt.Errorf("--format is %q, and must be text or json", o.format)}
	case o.format == "json" && o.output == "-":
		return usageError{errors.New("--format json writes to standard output: give --output FILE")}
	}
	return nil
}

// setPaths makes the paths absolute: the store of dev changes the working
// directory.
func (o *decryptOptions) setPaths(target crypt.Object) (err error) {
	if o.output == "" {
		o.output = path.Base(target.Key)
	}
	for _, p := range []*string{&o.output, &o.recovery, &o.customerKey, &o.devData} {
		if *p == "" || *p == "-" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	return nil
}

// openToDecrypt opens the store and the keys. With a recovery key, no KMS key
// is opened: they may be lost.
func openToDecrypt(
	ctx context.Context, config string, o decryptOptions, target crypt.Object, progress io.Writer,
) (d *direct, done func(), err error) {
	stopStore := func() {}
	cfg, socket := devConfig("", "", filepath.Join(o.devData, devKeyFile)), ""
	if o.devData == "" {
		if cfg, err = readOffline(config); err != nil {
			return nil, nil, err
		}
	} else if socket, stopStore, err = openDevStore(ctx, o.devData); err != nil {
		return nil, nil, err
	}

	if o.recovery != "" {
		cfg.Keys, cfg.Encryption.Rules, cfg.Encryption.BucketDefaultsFile, cfg.TenantsDir = nil, nil, "", ""
	}
	if d, err = openDirectAt(ctx, cfg, socket, target, progress); err != nil {
		stopStore()
		return nil, nil, err
	}
	return d, func() { d.close(); stopStore() }, nil
}

// decryptRun prepares to read one object directly from the store. was is the
// name under which the object was put.
func (d *direct) decryptRun(c *cobra.Command, target, was crypt.Object, o decryptOptions) (*decryptRun, error) {
	customerKey, err := readCustomerKey(o.customerKey)
	if err != nil {
		return nil, err
	}
	recovery, err := readRecoveryKey(o.recovery)
	if err != nil {
		return nil, err
	}

	reader := d.reader()
	reader.NoPartCount = o.as != "" // a tool may have copied the object in other parts
	reader.Open = func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
		switch {
		case keyID == crypt.CustomerKeyID:
			return d.openForCustomer(ctx, obj, wrapped, customerKey)
		case recovery != nil:
			return opened(d.keys.OpenRecovered(ctx, obj, wrapped, recovery))
		case o.anyKey:
			return d.openAnyKey(ctx, obj, keyID, wrapped)
		default:
			return opened(d.keys.OpenMoved(ctx, obj, target, keyID, wrapped))
		}
	}

	q := stored.Request{
		Object: was, At: target, Version: o.version,
		Plaintext: func(int64) error { return verify.ErrPlaintext },
	}
	return &decryptRun{
		reader: reader, request: q, progress: d.progress, again: resumeLine(c, ""), customerKey: customerKey,
	}, nil
}

// readCustomerKey reads a key from a file; it returns nil if path is empty.
func readCustomerKey(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func (b *backend) openForCustomer(
	ctx context.Context,
	obj crypt.Object,
	wrapped, customerKey []byte,
) (stored.Lease, error) {
	if customerKey == nil {
		return nil, errors.New("it is under a customer key (SSE-C): give --sse-customer-key FILE")
	}
	return b.keys.OpenForCustomer(ctx, obj, wrapped, customerKey)
}

// decryptRun decrypts one object.
type decryptRun struct {
	reader      *stored.Reader
	request     stored.Request
	progress    io.Writer
	again       string // the command line
	customerKey []byte
}

// decrypted is the result in JSON.
type decrypted struct {
	Type    string `json:"type"` // object
	Bucket  string `json:"bucket"`
	Key     string `json:"key"`
	Version string `json:"version_id,omitempty"`
	File    string `json:"file"`
	Size    int64  `json:"size"` // of the plaintext, in bytes: all of it was verified
}

// run reads the object. Until it is complete, the file has another name, so a
// file with the object's name is always complete. If run is repeated, it
// continues where it stopped.
func (r *decryptRun) run(ctx context.Context, o decryptOptions, stdout io.Writer) error {
	defer clear(r.customerKey)
	if o.output == "-" {
		err := r.toStream(ctx, stdout)
		if err != nil {
			err = earlyCause(ctx, err)
		}
		return err
	}
	size, err := r.toFile(ctx, o.output)
	if err != nil {
		return err
	}
	if o.format == "json" {
		at := r.request.At
		return json.NewEncoder(stdout).Encode(
			decrypted{"object", at.Bucket, at.Key, r.request.Version, o.output, size},
		)
	}
	fmt.Fprintf(r.progress, "%s: %d bytes, all verified\n", filepath.Base(o.output), size)
	return nil
}

func (r *decryptRun) toStream(ctx context.Context, w io.Writer) error {
	o, err := r.reader.Get(ctx, r.request)
	if err != nil {
		return err
	}
	defer o.Close()
	return r.copy(ctx, w, o)
}

// toFile writes the object to the file name. Until the object is complete,
// the file is called name.HASH.part. The hash includes the ETag, so toFile
// never continues a file of another object or of an older one.
func (r *decryptRun) toFile(ctx context.Context, name string) (size int64, err error) {
	head, err := r.reader.Head(ctx, r.request)
	if err != nil {
		return 0, err
	}
	state := sha256.Sum256([]byte(r.names() + "\n" + head.Header.Get("Etag")))

	part := name + "." + hex.EncodeToString(state[:4]) + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()

	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() > head.Size {
		return 0, fmt.Errorf("%s is longer than the object: remove it", part)
	}

	if err := r.goOn(ctx, f, info.Size(), head); err != nil {
		return 0, fmt.Errorf(
			"%w\nthe bytes verified so far are in %s\nto continue: %s", earlyCause(ctx, err), part, r.again,
		)
	}

	if err := errors.Join(f.Sync(), f.Close(), os.Rename(part, name)); err != nil {
		return 0, err
	}
	return head.Size, nil
}

// names returns where the object is, and the name under which it was put if
// that is another one.
func (r *decryptRun) names() string {
	at, was := r.request.At, r.request.Object
	text := at.Bucket + "/" + at.Key
	if was != at {
		text += "\n" + was.Bucket + "/" + was.Key
	}
	return text
}

// goOn appends the rest of the object to a file that has its first done
// bytes.
func (r *decryptRun) goOn(ctx context.Context, f *os.File, done int64, head *stored.Object) error {
	q := r.request
	q.Header = http.Header{"If-Match": {head.Header.Get("Etag")}}
	switch {
	case done > 0 && done == head.Size:
		return nil
	case done > 0:
		q.Range = stored.Bytes(done, head.Size-done)
		fmt.Fprintf(r.progress, "continuing at byte %d of %d\n", done, head.Size)
	}

	o, err := r.reader.Get(ctx, q)
	if err != nil {
		return err
	}
	defer o.Close()
	return r.copy(ctx, f, o)
}

func (r *decryptRun) copy(ctx context.Context, w io.Writer, o *stored.Object) error {
	bar := newProgress(r.progress, "decrypt", workOfBytes)
	bar.total(amount{1, o.Length}) // the bytes that are still to be read
	bar.start(ctx, nil)
	defer bar.end()
	w = bar.above(w)

	for {
		text, err := o.Next(ctx)
		if err == io.EOF { //nolint:errorlint // Next returns io.EOF unwrapped
			return nil
		}
		if err != nil {
			return err
		}

		if _, err := w.Write(text); err != nil {
			return err
		}
		bar.add(amount{0, int64(len(text))})
	}
}

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/verify"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// decrypt reads one object straight from the store, without a proxy. It writes to a file that is not whole yet under
// another name, so that what has the object's own name is the object; called again, it goes on where it ended.
func decrypt(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("decrypt", flag.ContinueOnError)
	config := flags.String("config", "", "path of the configuration `FILE`")
	output := flags.String("o", "", "the `FILE` to be written; - for standard output (default: the last part of the key)")
	customer := flags.String("sse-customer-key", "", "`FILE` with the key that the client brought for the object (SSE-C): raw, hex, base64 or PEM")
	version := flags.String("version-id", "", "`ID` of the version to read (default: the current one)")
	anyKey := flags.Bool("any-key", false, "read what is under any configured key, also one that no rule names for the bucket: whoever may use it can have made the object")
	target, err := parseTarget(flags, args, stdout)
	if err != nil {
		return err
	}
	cfg, err := readOffline(*config)
	if err != nil {
		return err
	}
	customerKey, err := readCustomerKey(*customer)
	if err != nil {
		return err
	}
	defer clear(customerKey)
	from, err := openDirect(ctx, cfg, target, os.Stderr)
	if err != nil {
		return err
	}
	defer from.close()
	reader := from.reader()
	reader.Open = func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
		if keyID == crypt.CustomerKeyID {
			return from.openForCustomer(ctx, obj, wrapped, customerKey)
		}
		if *anyKey {
			return from.openAnyKey(ctx, obj, keyID, wrapped)
		}
		return from.open(ctx, obj, keyID, wrapped)
	}
	q := stored.Request{Object: target, Version: *version, Plaintext: func() error { return verify.ErrPlaintext }}
	d := decryption{reader: reader, request: q, progress: from.progress}
	if *output == "-" {
		err = d.toStream(ctx, stdout)
	} else {
		if *output == "" {
			*output = path.Base(target.Key)
		}
		err = d.toFile(ctx, *output)
	}
	if err != nil {
		return fmt.Errorf("s3://%s/%s: %w", target.Bucket, target.Key, err)
	}
	return nil
}

// readCustomerKey reads a key from a file; nil for no file.
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

func (b *backend) openForCustomer(ctx context.Context, obj crypt.Object, wrapped, customerKey []byte) (stored.Lease, error) {
	if customerKey == nil {
		return nil, errors.New("it is under a key that the client brought (SSE-C): say --sse-customer-key FILE")
	}
	return b.keys.OpenForCustomer(ctx, obj, wrapped, customerKey)
}

// parseTarget reads flags and the one s3:// argument, in any order.
func parseTarget(flags *flag.FlagSet, args []string, stdout io.Writer) (crypt.Object, error) {
	targets, err := parseArguments(flags, args, stdout)
	if err != nil {
		return crypt.Object{}, err
	}
	if len(targets) != 1 {
		return crypt.Object{}, usageError{fmt.Errorf("one s3://bucket/key is wanted, not %d", len(targets))}
	}
	rest, ok := strings.CutPrefix(targets[0], "s3://")
	bucket, key, _ := strings.Cut(rest, "/")
	if !ok || bucket == "" || key == "" {
		return crypt.Object{}, usageError{fmt.Errorf("%q is not of the form s3://bucket/key", targets[0])}
	}
	return crypt.Object{Bucket: bucket, Key: key}, nil
}

// decryption is one object on its way out of the store.
type decryption struct {
	reader   *stored.Reader
	request  stored.Request
	progress io.Writer
}

func (d *decryption) toStream(ctx context.Context, w io.Writer) error {
	o, err := d.reader.Get(ctx, d.request)
	if err != nil {
		return err
	}
	defer o.Close()
	return d.copy(ctx, w, o)
}

// toFile writes the object to a file of that name. Until it is whole it is called name.HASH.part, where the hash is of
// the object's ETag: what is there of another object, or of an older one, is not gone on with.
func (d *decryption) toFile(ctx context.Context, name string) error {
	head, err := d.reader.Head(ctx, d.request)
	if err != nil {
		return err
	}
	state := sha256.Sum256([]byte(d.request.Object.Bucket + "/" + d.request.Object.Key + "\n" + head.Header.Get("Etag")))
	part := name + "." + hex.EncodeToString(state[:4]) + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > head.Size {
		return fmt.Errorf("%s is longer than the object: remove it", part)
	}
	if err := d.goOn(ctx, f, info.Size(), head); err != nil {
		return fmt.Errorf("%w\nwhat was read and verified so far is in %s; the same command goes on from there", err, part)
	}
	if err := errors.Join(f.Sync(), f.Close(), os.Rename(part, name)); err != nil {
		return err
	}
	fmt.Fprintf(d.progress, "%s: %d bytes, every one verified\n", filepath.Base(name), head.Size)
	return nil
}

// goOn appends what is missing to a file that has the first done bytes.
func (d *decryption) goOn(ctx context.Context, f *os.File, done int64, head *stored.Object) error {
	q := d.request
	q.Header = http.Header{"If-Match": {head.Header.Get("Etag")}}
	switch {
	case done > 0 && done == head.Size:
		return nil
	case done > 0:
		q.Range = stored.Bytes(done, head.Size-done)
		fmt.Fprintf(d.progress, "going on at byte %d of %d\n", done, head.Size)
	}
	o, err := d.reader.Get(ctx, q)
	if err != nil {
		return err
	}
	defer o.Close()
	return d.copy(ctx, f, o)
}

func (d *decryption) copy(ctx context.Context, w io.Writer, o *stored.Object) error {
	bar := progressbar.NewOptions64(o.Length, // what is still to be read
		progressbar.OptionSetWriter(d.progress), progressbar.OptionShowBytes(true), progressbar.OptionShowCount(),
		progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionSetVisibility(isTerminal(d.progress)),
		progressbar.OptionSetPredictTime(true), progressbar.OptionClearOnFinish())
	for {
		text, err := o.Next(ctx)
		if err == io.EOF { //nolint:errorlint // bare: Next says so
			return bar.Finish()
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
		_ = bar.Add(len(text))
	}
}

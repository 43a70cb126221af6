package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
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
	o.declare(flags)

	c.RunE = func(c *cobra.Command, args []string) error {
		target, err := parseObject(args[0])
		if err != nil {
			return err
		}
		if err := errors.Join(o.checkFormat(), o.check()); err != nil {
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
		ctx, stop := d.watch(c.Context(), o.giveUp)
		defer stop()

		r, err := d.decryptRun(c, target, was, o)
		if err == nil {
			err = r.run(ctx, o, c.OutOrStdout())
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
	patience
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
	open := func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
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

	reader := d.reader()
	reader.Send = (&inplace.Store{Send: d.send}).Do
	reader.NoPartCount = o.as != "" // a tool may have copied the object in other parts
	reader.Open = func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
		lease, err := open(ctx, obj, keyID, wrapped)
		if err == nil {
			d.kmsWatch.Answered()
		}
		return lease, err
	}

	q := stored.Request{
		Object: was, At: target, Version: o.version,
		Plaintext: func(int64) error { return verify.ErrPlaintext },
	}
	return &decryptRun{
		direct: d, reader: reader, request: q, again: resumeLine(c, ""), customerKey: customerKey,
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

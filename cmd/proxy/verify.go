package main

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/verify"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

func verifyCommand() *cobra.Command {
	v := &verifyRun{}
	c := &cobra.Command{
		Use:   "verify s3://BUCKET[/PREFIX]",
		Short: "Read all objects of a bucket to the last byte; exit 1 if any fails verification",
		Args:  oneArgument("s3://bucket"),
	}
	path := configFlag(c)

	flags := c.Flags()
	flags.StringVar(&v.format, "format", "table", "table, csv (RFC 4180), or json (one object per line)")
	flags.BoolVar(
		&v.old,
		"versions",
		false,
		"all versions of the objects, not only the current ones; cannot be used with --state",
	)

	declareRecovery(flags, &v.recovery)
	v.declare(flags, "read")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		if err := v.check(); err != nil {
			return err
		}
		if v.direct, err = openBucket(c, *path, args[0]); err != nil {
			return err
		}
		defer v.close()

		v.command, v.at.versions = c, v.old
		out := v.withProgress(c.OutOrStdout())
		if v.faults, err = newFaultWriter(v.format, out, v.progress); err != nil {
			return err
		}
		ctx, stop := v.begin(c.Context())
		defer stop()
		return v.run(ctx)
	}

	return c
}

// verifyRun is one run of the command.
type verifyRun struct {
	sweep
	old      bool   // --versions
	recovery string // --recovery-key
	faults   faultWriter
}

func (v *verifyRun) check() error {
	if v.old && v.state != "" {
		return usageError{
			errors.New(
				"--state records a position among keys, not among versions: it cannot be used with --versions",
			),
		}
	}
	return v.sweepOptions.check()
}

func (v *verifyRun) run(ctx context.Context) error {
	open, err := v.opener()
	if err != nil {
		return err
	}
	verifier := verify.New(verify.Config{
		Send: v.send, Open: open, OpenEnd: v.cfg.Origin.UniformParts, Wait: v.wait(), Away: v.away,
		LiteralKeys:    v.cfg.Origin.Keys == config.LiteralKeys,
		AllowPlaintext: func(obj crypt.Object) bool { return v.keys.AllowPlaintext(obj, v.client) },
	})
	names, totals := v.keyNames(), newFaultTotals()
	do := func(ctx context.Context, e stored.Entry) walk.Result { return verifier.Verify(ctx, v.bucket, e) }

	err = v.walk(ctx, walk.State{Command: "verify"}, v.list, do, func(r walk.Result) {
		totals.add(r)
		if r.Outcome == walk.Failed {
			v.wrote(v.faults.row(faultOf(r, names)))
		}
	})
	totals.ending = endingOf(err, v.at.after)
	v.wrote(v.faults.end(totals))

	var failed error
	if n := v.counts[walk.Failed]; n > 0 {
		failed = fmt.Errorf("%d objects failed verification", n)
	}
	return errors.Join(err, v.written, failed)
}

// opener returns what opens data keys: the keys of the configuration, or the
// recovery key.
func (v *verifyRun) opener() (inplace.Open, error) {
	recovery, err := readRecoveryKey(v.recovery)
	if err != nil || recovery == nil {
		return v.open, err
	}
	return func(ctx context.Context, obj crypt.Object, _ string, wrapped []byte) (stored.Lease, error) {
		return opened(v.keys.OpenRecovered(ctx, obj, wrapped, recovery))
	}, nil
}

// list lists the objects to read, with their versions if --versions is set.
func (v *verifyRun) list(ctx context.Context, l stored.Listing) iter.Seq2[stored.Entry, error] {
	l.Versions = v.old
	return v.reader().List(ctx, l)
}

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/maintain/encrypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

func encryptCommand() *cobra.Command {
	e := &encryptRun{}
	c := &cobra.Command{
		Use:   "encrypt s3://BUCKET[/PREFIX]",
		Short: "Encrypt the plaintext objects of a bucket in place",
		Long:  "Encrypt the plaintext objects of a bucket in place. This needs no proxy; proxies can keep running.",
		Args:  oneArgument("s3://bucket"),
	}

	config := configFlag(c)
	flags := c.Flags()
	flags.BoolVar(&e.dryRun, "dry-run", false, "write nothing; report what would be encrypted")
	flags.BoolVar(
		&e.unconditional,
		"unconditional",
		false,
		"write even if the store does not honor If-Match; only if nothing else writes to the bucket",
	)

	only := flags.String(
		"only-listed",
		"",
		"`FILE` with the objects to encrypt, such as an inventory (csv or json) from before the migration; "+
			"other objects are skipped",
	)
	e.declare(flags, "encrypt")
	e.declareFormat(flags)

	c.RunE = func(c *cobra.Command, args []string) (err error) {
		if err := e.check(); err != nil {
			return err
		}

		if *only != "" {
			if e.listed, err = readObjectList(*only); err != nil {
				return err
			}
		}

		if e.direct, err = openBucket(c, *config, args[0]); err != nil {
			return err
		}
		defer e.close()
		e.command = c
		if err := e.output(c.OutOrStdout()); err != nil {
			return err
		}
		ctx, stop := e.begin(c.Context())
		defer stop()
		return e.run(ctx)
	}

	return c
}

// encryptRun is one run of the command.
type encryptRun struct {
	sweep
	unconditional bool
	listed        *objectList // nil for all
}

func (e *encryptRun) run(ctx context.Context) error {
	common, done, err := e.rewriting(ctx)
	if err != nil {
		return err
	}
	defer done()
	c := encrypt.Config{Config: common, Unconditional: e.unconditional}
	state := walk.State{Command: "encrypt"}

	if e.listed != nil {
		c.Listed, state.Listed = e.listed.check, e.listed.digest
	}
	kept := e.versions(
		ctx,
		"Each encrypted object remains in plaintext as an older version until that version is deleted; "+
			"cmekproxy inventory --versions counts them",
	)

	if !e.dryRun {
		if c.Abilities, err = e.safeAbilities(ctx); err != nil {
			return err
		}
	}

	encrypter := encrypt.New(c)
	do := func(ctx context.Context, entry stored.Entry) walk.Result {
		return encrypter.Encrypt(ctx, e.bucket, entry)
	}
	err = e.walk(ctx, state, e.reader().List, do, e.report)
	err = e.end(err, e.summary)

	if kept && !e.dryRun && e.counts[walk.Done] > 0 {
		fmt.Fprintf(e.out, "versions   %d older versions in plaintext remain from this run\n", e.counts[walk.Done])
	}
	return err
}

// safeAbilities returns what the store can do, or an error if a client's
// write could be lost, unless --unconditional is set.
func (e *encryptRun) safeAbilities(ctx context.Context) (inplace.Abilities, error) {
	a, err := e.abilities(ctx)
	if err != nil {
		return a, err
	}

	for _, write := range []struct {
		name string
		held bool
	}{{"PutObject", a.PutIfMatch}, {"CompleteMultipartUpload", a.CompleteIfMatch}} {
		switch {
		case write.held:
		case !e.unconditional:
			return a, fmt.Errorf(
				"the store does not honor If-Match in %s, so a concurrent write of a client could be lost. "+
					"Stop all writes to the bucket, then give --unconditional",
				write.name,
			)
		default:
			fmt.Fprintf(
				e.out,
				"WARNING: the store does not honor If-Match in %s. "+
					"The object is checked right before the write; a client's write in between is lost\n",
				write.name,
			)
		}
	}

	if !a.ETagIsMD5 {
		fmt.Fprintln(
			e.out,
			"note: ETags of this store are not MD5s, so reads and writes are not compared with them",
		)
	}
	return a, nil
}

func (e *encryptRun) summary() {
	verb := "encrypted"
	if e.dryRun {
		verb = "to encrypt"
	}
	fmt.Fprintf(e.out, "%s  %d objects, %d bytes; %d of them multipart\n", verb, e.counts[walk.Done], e.bytes, e.parts)
	fmt.Fprintf(
		e.out,
		"skipped    %d already encrypted, %d deleted during the run\n",
		e.counts[walk.Current],
		e.counts[walk.Gone],
	)
	fmt.Fprintf(e.out, "failed     %d\n", e.counts[walk.Failed])
}

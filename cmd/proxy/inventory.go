package main

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/maintain/inventory"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

func inventoryCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "inventory s3://BUCKET[/PREFIX]",
		Short: "List the objects of a bucket with the KMS key of each",
		Long: "List the objects of a bucket with the KMS key that the envelope of each names.\n" +
			"It does not use the KMS, so it works even if a key is lost. It verifies nothing; see cmekproxy verify.",
		Args: oneArgument("s3://bucket"),
	}

	config := configFlag(c)
	flags := c.Flags()
	format := flags.String("format", "table", "table, csv (RFC 4180), or json (one object per line)")
	versions := flags.Bool("versions", false, "all versions of the objects, not only the current ones")

	quick := flags.Bool(
		"quick",
		false,
		"for multipart objects, trust the mark from their creation, without reading the header of each part",
	)
	summary := flags.Bool("summary", false, "only the totals, and not each object")
	parallel := flags.Int("parallel", 16, "`N` objects at a time")
	var long longOptions
	long.declare(flags)

	c.RunE = func(c *cobra.Command, args []string) error {
		if err := errors.Join(long.check(), checkParallel(*parallel)); err != nil {
			return err
		}
		if *summary && *format == "csv" {
			return usageError{errors.New("--summary has no form in csv: choose table or json")}
		}
		d, err := openBucket(c, *config, args[0])
		if err != nil {
			return err
		}
		defer d.close()

		r := &inventoryRun{direct: d, command: c, summary: *summary}
		r.bar = newProgress(d.progress, c.Name(), workOfHeaders)
		d.progress = r.bar.above(d.progress)
		if r.out, err = newInventoryWriter(*format, r.bar.above(c.OutOrStdout()), d.progress); err != nil {
			return err
		}
		ctx, stop := d.watch(c.Context(), long.giveUp)
		defer stop()
		i := inventory.New(
			inventory.Config{Reader: d.reader(), KeyNames: d.keyNames(), Quick: *quick, Parallel: *parallel},
		)
		return r.run(ctx, i, stored.Listing{Bucket: d.bucket, Prefix: d.prefix, After: long.after, Versions: *versions})
	}

	return c
}

// inventoryRun is one run of the command.
type inventoryRun struct {
	*direct
	command *cobra.Command
	summary bool // no rows
	out     inventoryWriter
	bar     *progress
	at      position
	totals  *inventoryTotals
}

func (r *inventoryRun) run(ctx context.Context, i *inventory.Inventory, l stored.Listing) error {
	r.at = position{versions: l.Versions, after: l.After}
	r.totals = newInventoryTotals(l)
	r.bar.start(ctx, r.reader().List(ctx, l))
	err := r.rows(ctx, i.Objects(ctx, l))
	r.bar.end()

	switch {
	case err != nil && (ctx.Err() != nil || r.totals.Objects > 0):
		err = &early{earlyCause(ctx, err), resumeLine(r.command, r.at.after)}
	case err == nil && r.totals.Objects+r.totals.Errors == 0:
		r.sayEmpty(l.After)
	}
	r.totals.ending = endingOf(err, r.at.after)
	err = errors.Join(err, r.out.end(r.totals))
	if r.totals.Errors > 0 {
		r.sayBroken()
		err = errors.Join(err, fmt.Errorf("cannot determine the KMS key of %d objects", r.totals.Errors))
	}
	return err
}

func (r *inventoryRun) rows(ctx context.Context, objects iter.Seq2[inventory.Object, error]) error {
	for o, err := range objects {
		if err != nil {
			return err
		}
		broken := o.Kind == inventory.Broken
		if broken && ctx.Err() != nil {
			return ctx.Err() // the end of ctx made it fail
		}

		r.bar.add(amount{1, o.Stored()})
		if broken {
			r.bar.failed.Add(1)
		}
		r.at.passed(o.Key, false)
		r.totals.add(o)
		if r.summary {
			continue
		}
		if err := r.out.row(o); err != nil {
			return err
		}
	}
	return nil
}

// sayBroken lists the objects with an error once more, because they are hard
// to find among many rows.
func (r *inventoryRun) sayBroken() {
	for _, o := range r.totals.broken {
		fmt.Fprintf(r.progress, "ERROR  %s: %s\n", visible(o.Key), o.Error)
	}
	if more := r.totals.Errors - int64(len(r.totals.broken)); more > 0 {
		fmt.Fprintf(r.progress, "and %d more\n", more)
	}
}

package main

import (
	"fmt"
	"iter"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/maintain/inventory"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

func inventoryCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "inventory s3://BUCKET[/PREFIX]",
		Short: "Say which KMS key protects which object of a bucket",
		Long: "Say which KMS key protects which object of a bucket, as the objects' envelopes have it.\n" +
			"It asks no KMS, so it also works when a key is lost. Nothing of what it says is verified; cmekproxy verify does that.",
		Args: oneArgument("s3://bucket"),
	}

	config := configFlag(c)
	flags := c.Flags()
	format := flags.String("format", "table", "table, csv (RFC 4180), or json (an object a line)")
	versions := flags.Bool("versions", false, "all versions of the objects, and not the current ones only")

	quick := flags.Bool(
		"quick",
		false,
		"of an object in parts believe the mark that it was created with, and not the header of each part",
	)
	parallel := flags.Int("parallel", 16, "`N` objects at a time")

	c.RunE = func(c *cobra.Command, args []string) error {
		if err := checkParallel(*parallel); err != nil {
			return err
		}
		d, err := openBucket(c, *config, args[0])
		if err != nil {
			return err
		}
		defer d.close()

		out, err := newInventoryWriter(*format, c.OutOrStdout(), d.progress)
		if err != nil {
			return err
		}
		i := inventory.New(
			inventory.Config{Reader: d.reader(), KeyNames: d.keyNames(), Quick: *quick, Parallel: *parallel},
		)

		list := stored.Listing{Bucket: d.bucket, Prefix: d.prefix, Versions: *versions}
		return d.writeInventory(i.Objects(c.Context(), list), out)
	}

	return c
}

func (d *direct) writeInventory(objects iter.Seq2[inventory.Object, error], out inventoryWriter) error {
	bar := counter(d.progress, "looked at")
	defer bar.Finish() //nolint:errcheck // nothing depends on it
	totals := newInventoryTotals()

	for o, err := range objects {
		if err != nil {
			return err
		}
		_ = bar.Add(1)
		totals.add(o)

		if err := out.row(o); err != nil {
			return err
		}
	}

	if err := out.end(totals); err != nil {
		return err
	}
	if totals.broken > 0 {
		return fmt.Errorf("of %d objects it cannot be said what protects them", totals.broken)
	}
	return nil
}

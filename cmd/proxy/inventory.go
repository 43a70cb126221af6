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
	bar := counter(d.progress, "objects")
	defer bar.Finish() //nolint:errcheck // it only affects the display
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
		return fmt.Errorf("cannot determine the KMS key of %d objects", totals.broken)
	}
	return nil
}

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"

	"github.com/cmekproxy/cmekproxy/internal/maintain/inventory"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// inventoryCommand says which KMS key protects which object, as their envelopes have it. It asks no KMS: it is also for the day
// on which a key is gone. So nothing of what it says is verified; `proxy decrypt` does that.
func inventoryCommand(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("inventory", flag.ContinueOnError)
	config := flags.String("config", "", "path of the configuration `FILE`")
	format := flags.String("format", "table", "table, csv (RFC 4180), or json (an object a line)")
	versions := flags.Bool("versions", false, "all versions of the objects, and not the current ones only")
	quick := flags.Bool("quick", false, "of an object in parts believe the mark that it was created with, and not the header of each part")
	parallel := flags.Int("parallel", 16, "`N` objects at a time")
	target, err := parseBucket(flags, args, stdout)
	if err != nil {
		return err
	}
	if err := checkParallel(*parallel); err != nil {
		return err
	}
	cfg, err := readOffline(*config)
	if err != nil {
		return err
	}
	d, err := openDirect(ctx, cfg, target, os.Stderr)
	if err != nil {
		return err
	}
	defer d.close()
	out, err := newInventoryWriter(*format, stdout, d.progress)
	if err != nil {
		return err
	}
	i := inventory.New(inventory.Config{Reader: d.reader(), KeyNames: d.keyNames(), Quick: *quick, Parallel: *parallel})
	return d.writeInventory(i.Objects(ctx, stored.Listing{Bucket: d.bucket, Prefix: d.prefix, Versions: *versions}), out)
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

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/rewrap"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

func rewrapCommand() *cobra.Command {
	var o rewrapOptions
	r := &rewrapRun{}
	c := &cobra.Command{
		Use:   "rewrap s3://BUCKET[/PREFIX]",
		Short: "Move the objects of a bucket to another KMS key",
		Long:  "Move the objects of a bucket to another KMS key. This needs no proxy; proxies can keep running.",
		Args:  oneArgument("s3://bucket"),
	}

	config := configFlag(c)
	flags := c.Flags()
	flags.StringVar(&o.to, "to", "", "`NAME` of the key to move to (default: for each object the key of the rules)")

	flags.BoolVar(
		&o.all,
		"all",
		false,
		"also rewrap objects that are already under the key, to use a new version of it; "+
			"objects known to be under the newest version are skipped",
	)
	flags.BoolVar(
		&o.bind,
		"bind",
		false,
		"also rewrap objects under form 1 of an Azure RSA key with bindings. Anyone with the public key "+
			"can make such objects: you vouch that all of them are genuine",
	)

	flags.BoolVar(&o.dryRun, "dry-run", false, "write nothing; report what would be moved")
	flags.StringVar(
		&o.method,
		"method",
		"auto",
		"how a single-PUT object gets its new envelope: copy (by the store), put (by this command), "+
			"or auto (the one that loses no concurrent write)",
	)

	flags.StringVar(
		&o.adopt,
		"adopt",
		"",
		"`s3://BUCKET[/PREFIX]` where the objects were put, before they were moved or copied within the store: "+
			"give them envelopes for their new names. The prefixes are replaced as text. "+
			"You vouch that the objects may appear under these names",
	)
	flags.StringVar(
		&o.names,
		"names",
		"",
		"with --adopt: `FILE` in CSV with the columns old_key and new_key; only its objects are adopted",
	)

	declareRecovery(flags, &o.recovery)
	o.declare(flags, "move")
	r.declareFormat(flags)
	c.RunE = func(c *cobra.Command, args []string) error {
		target, err := parseBucket(args[0])
		if err != nil {
			return err
		}
		if err := o.check(); err != nil {
			return err
		}
		adopted, err := o.adoption(target)
		if err != nil {
			return err
		}
		recovery, err := readRecoveryKey(o.recovery)
		if err != nil {
			return err
		}

		cfg, err := readOffline(*config)
		if err != nil {
			return err
		}
		if err := o.admit(cfg); err != nil {
			return err
		}

		d, err := openDirect(c.Context(), cfg, target, c.ErrOrStderr())
		if err != nil {
			return err
		}
		defer d.close()

		r.direct, r.command, r.sweepOptions = d, c, o.sweepOptions
		r.to, r.method, r.all, r.bind, r.adopted, r.recovery = o.to, o.method, o.all, o.bind, adopted, recovery
		if err := r.output(c.OutOrStdout()); err != nil {
			return err
		}
		ctx, stop := r.begin(c.Context())
		defer stop()
		return r.run(ctx)
	}

	return c
}

type rewrapOptions struct {
	sweepOptions
	to, method   string
	all, bind    bool
	adopt, names string
	recovery     string
}

func (o *rewrapOptions) check() error {
	if o.method != "auto" && o.method != "copy" && o.method != "put" {
		return usageError{fmt.Errorf("--method is %q, and must be auto, copy or put", o.method)}
	}
	return o.sweepOptions.check()
}

// admit adds --to to the keys that the rules allow: the limits of clients do
// not apply to the operator. Objects are still read only under keys that the
// rules name, because after a rewrap no reader could doubt them.
func (o *rewrapOptions) admit(cfg *config.Config) error {
	if o.bind && !slices.ContainsFunc(cfg.Keys, func(k config.Key) bool { return len(k.Bindings) > 0 }) {
		return usageError{errors.New("--bind: no key of the configuration has bindings")}
	}
	if o.to == "" {
		return nil
	}
	for i := range cfg.Encryption.Rules {
		r := &cfg.Encryption.Rules[i]
		r.AllowedKeys = append(r.AllowedKeys, o.to)
	}
	return nil
}

// rewrapRun is one run of the command.
type rewrapRun struct {
	sweep
	to, method string
	all, bind  bool
	adopted    *adoption   // nil to move objects to another key
	recovery   kms.Wrapper // nil to open objects with their KMS keys
}

func (r *rewrapRun) run(ctx context.Context) error {
	if r.to != "" {
		if err := r.tryKey(ctx, r.to); err != nil {
			return fmt.Errorf("key %s: %w", r.to, err)
		}
	}

	common, done, err := r.rewriting(ctx)
	if err != nil {
		return err
	}
	defer done()

	c := rewrap.Config{Config: common, To: r.to, All: r.all, Bind: r.bind, Recovery: r.recovery}
	if r.adopted != nil {
		c.OldName = r.adopted.oldName
	}
	if err := r.prepare(ctx, &c); err != nil {
		return err
	}
	mover := rewrap.New(c)
	move := func(ctx context.Context, e stored.Entry) walk.Result { return mover.Move(ctx, r.bucket, e) }
	state, list := walk.State{Command: "rewrap", To: r.to, All: r.all, Bind: r.bind}, r.reader().List
	if r.adopted != nil {
		list, move = r.adopted.walk(&state, list, move)
	}
	err = r.walk(ctx, state, list, move, r.report)
	return r.end(err, r.summary)
}

// prepare tests what the store can do, chooses the method, and prints
// warnings.
func (r *rewrapRun) prepare(ctx context.Context, c *rewrap.Config) error {
	r.versions(ctx, "Old versions stay under their keys; cmekproxy inventory --versions counts them")
	if c.DryRun {
		return nil
	}

	var err error
	c.Abilities, err = r.abilities(ctx)
	if err != nil {
		return err
	}

	c.Method = map[string]rewrap.Method{
		"auto": rewrap.Safest(c.Abilities),
		"copy": rewrap.Copy,
		"put":  rewrap.Put,
	}[r.method]
	safe := c.Method == rewrap.Copy && c.Abilities.CopyIfMatch || c.Method == rewrap.Put && c.Abilities.PutIfMatch

	switch {
	case c.Method == rewrap.NoMethod:
		return errors.New(
			"the store honors If-Match neither in CopyObject nor in PutObject, " +
				"so a concurrent write of a client could be lost. " +
				"Stop all writes to the bucket, then give --method copy (or put)",
		)
	case !safe:
		fmt.Fprintf(
			r.out,
			"WARNING: method %s, for which the store does not honor If-Match: "+
				"a concurrent write of a client can be lost\n",
			c.Method,
		)
	default:
		fmt.Fprintf(r.out, "single-PUT objects: method %s, with If-Match\n", c.Method)
	}

	if !c.Abilities.CompleteIfMatch {
		fmt.Fprintln(
			r.out,
			"WARNING: the store does not honor If-Match in CompleteMultipartUpload. "+
				"The object is checked right before the write; a client's write in between is lost",
		)
	}
	return nil
}

func (r *rewrapRun) summary() {
	verb, dry, current := "rewrapped", "to rewrap", "under the right key"
	if r.adopted != nil {
		verb, dry, current = "adopted", "to adopt", "bound to their names"
	}
	if r.dryRun {
		verb = dry
	}
	fmt.Fprintf(
		r.out,
		"%-9s  %d objects, %d bytes; %d of them multipart\n",
		verb,
		r.counts[walk.Done],
		r.bytes,
		r.parts,
	)
	fmt.Fprintf(
		r.out,
		"skipped    %d already %s, %d plaintext, %d deleted during the run, %d under customer keys (SSE-C)\n",
		r.counts[walk.Current],
		current,
		r.counts[walk.Plaintext],
		r.counts[walk.Gone],
		r.counts[walk.Customer],
	)

	fmt.Fprintf(r.out, "failed     %d\n", r.counts[walk.Failed])
}

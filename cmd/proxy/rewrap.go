package main

import (
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/inplace"
	"github.com/cmekproxy/cmekproxy/internal/rewrap"
	"github.com/cmekproxy/cmekproxy/internal/stored"
	"github.com/cmekproxy/cmekproxy/internal/walk"
)

// rewrapCommand moves the objects of a bucket to another KMS key, without a proxy and beside those that run.
func rewrapCommand(ctx context.Context, args []string, stdout io.Writer) error {
	var o rewrapOptions
	flags := flag.NewFlagSet("rewrap", flag.ContinueOnError)
	path := flags.String("config", "", "path of the configuration `FILE`")
	flags.StringVar(&o.to, "to", "", "`NAME` of the key to move to (default: for each object the key of the rules)")
	flags.StringVar(&o.client, "client", "", "`NAME` of the client in whose name the rules are asked (default: one that no rule names)")
	flags.BoolVar(&o.all, "all", false, "also what is under the key already, for a new version of it; where the version can be told, not what is under the newest")
	flags.BoolVar(&o.dryRun, "dry-run", false, "write nothing, and say what would be moved")
	flags.IntVar(&o.parallel, "parallel", 8, "`N` objects at a time")
	flags.Float64Var(&o.rate, "rate", 0, "move no more than `N` objects in a second (default: as many as can be)")
	flags.StringVar(&o.state, "state", "", "`FILE` that keeps the position: with it a run that was ended goes on where it was")
	flags.StringVar(&o.method, "method", "auto", "how an object that was put whole gets its new envelope: copy by the store, put back by this command, or auto for the way that loses no concurrent write")
	flags.BoolVar(&o.keepGoing, "keep-going", false, "do not end when many objects in a row have failed")
	target, err := parseBucket(flags, args, stdout)
	if err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	cfg, err := loadConfig(*path)
	if err != nil {
		return err
	}
	d, err := openDirect(ctx, cfg, target, os.Stderr)
	if err != nil {
		return err
	}
	defer d.close()
	return (&relocation{direct: d, rewrapOptions: o, out: stdout}).run(ctx, cfg)
}

type rewrapOptions struct {
	to, client, state, method string
	all, dryRun, keepGoing    bool
	parallel                  int
	rate                      float64
}

func (o rewrapOptions) check() error {
	switch {
	case o.rate < 0:
		return usageError{errors.New("--rate is negative")}
	case o.method != "auto" && o.method != "copy" && o.method != "put":
		return usageError{fmt.Errorf("--method is %q, and must be auto, copy or put", o.method)}
	}
	return checkParallel(o.parallel)
}

// relocation is one run of the command.
type relocation struct {
	*direct
	rewrapOptions
	out io.Writer
	bar *progressbar.ProgressBar

	counts walk.Counts
	parts  int64 // objects in parts among those moved
	bytes  int64
}

func (r *relocation) run(ctx context.Context, cfg *config.Config) error {
	if r.to != "" {
		if err := r.keys.Try(ctx, r.to); err != nil {
			return fmt.Errorf("key %s: %w", r.to, err)
		}
	}
	// A second set of keys, whose cache knows nothing of what the first one has just wrapped: it asks the KMS.
	again, err := build(ctx, cfg, zap.NewNop(), "")
	if err != nil {
		return err
	}
	defer again.close()
	c := rewrap.Config{
		Send: r.send, Keys: r.keys, Check: (&direct{app: again}).open,
		Client: r.client, To: r.to, All: r.all, Version: keyVersion, OpenEnd: cfg.Origin.UniformParts,
		DryRun: r.dryRun, Random: rand.Reader,
	}
	if r.rate > 0 {
		c.Wait = rate.NewLimiter(rate.Limit(r.rate), 1).Wait
	}
	if err := r.prepare(ctx, &c); err != nil {
		return err
	}
	r.bar = counter(r.progress, "looked at")
	mover := rewrap.New(c)
	w := walk.Walk{
		Do:   func(ctx context.Context, e stored.Entry) walk.Result { return mover.Move(ctx, r.bucket, e) },
		List: r.reader().List, Parallel: r.parallel, File: r.state, DryRun: r.dryRun, KeepGoing: r.keepGoing, Report: r.report, Now: time.Now,
	}
	err = w.Run(ctx, walk.State{Command: "rewrap", Bucket: r.bucket, Prefix: r.prefix, To: r.to, All: r.all})
	_ = r.bar.Finish()
	r.summary()
	if failed := r.counts[walk.Failed]; failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d objects have failed", failed))
	}
	return err
}

// prepare finds out what the store can do, and says what follows from it.
func (r *relocation) prepare(ctx context.Context, c *rewrap.Config) error {
	if kept, err := r.keepsVersions(ctx); err != nil {
		fmt.Fprintf(r.out, "note: whether the bucket keeps old versions could not be found out: %v\n", err)
	} else if kept {
		fmt.Fprintln(r.out, "note: the bucket keeps old versions. They stay under their keys; proxy inventory --versions counts them")
	}
	if c.DryRun {
		return nil
	}
	var err error
	if c.Abilities, err = inplace.Probe(ctx, r.send, r.bucket, r.prefix); err != nil {
		return fmt.Errorf("finding out what the store can do: %w", err)
	}
	c.Method = map[string]rewrap.Method{"auto": rewrap.Safest(c.Abilities), "copy": rewrap.Copy, "put": rewrap.Put}[r.method]
	safe := c.Method == rewrap.Copy && c.Abilities.CopyIfMatch || c.Method == rewrap.Put && c.Abilities.PutIfMatch
	switch {
	case c.Method == rewrap.NoMethod:
		return errors.New("the store refuses neither a CopyObject nor a PutObject by If-Match, so what a client writes in the same moment could be lost. " +
			"Stop all that writes to the bucket, and say --method copy (or put)")
	case !safe:
		fmt.Fprintf(r.out, "WARNING: method %s, and this store does not hold to If-Match there: what a client writes in the same moment can be lost\n", c.Method)
	default:
		fmt.Fprintf(r.out, "objects that were put whole: method %s, with If-Match\n", c.Method)
	}
	if !c.Abilities.CompleteIfMatch {
		fmt.Fprintln(r.out, "WARNING: the store does not hold to If-Match when an upload is completed. The object is looked at right before; what a client writes in between is lost")
	}
	return nil
}

// keepsVersions asks whether the bucket has, or had, versioning.
func (r *relocation) keepsVersions(ctx context.Context) (bool, error) {
	req := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/" + r.bucket, RawQuery: "versioning="}, Header: make(http.Header)}
	resp, err := r.send(req.WithContext(ctx))
	if answer := (*storeError)(nil); errors.As(err, &answer) && answer.status == http.StatusNotImplemented {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	var doc struct{ Status string }
	err = xml.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&doc)
	return doc.Status != "", err
}

// report counts an object, and names one that failed.
func (r *relocation) report(result walk.Result) {
	_ = r.bar.Add(1)
	r.counts[result.Outcome]++
	if result.Outcome == walk.Failed {
		fmt.Fprintf(r.out, "FAILED  %s: %v\n", visible(result.Key), result.Err)
	}
	if result.Outcome == walk.Done {
		r.bytes += max(result.Size, 0)
		if result.Parts != 0 {
			r.parts++
		}
	}
}

func (r *relocation) summary() {
	verb := "rewrapped"
	if r.dryRun {
		verb = "to rewrap"
	}
	fmt.Fprintf(r.out, "%s  %d objects, %d bytes; %d of them in parts\n", verb, r.counts[walk.Done], r.bytes, r.parts)
	fmt.Fprintf(r.out, "skipped    %d under the right key already, %d plaintext, %d deleted meanwhile\n",
		r.counts[walk.Current], r.counts[walk.Plaintext], r.counts[walk.Gone])
	fmt.Fprintf(r.out, "failed     %d\n", r.counts[walk.Failed])
}

package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/encrypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// sweep is a run over all objects of a bucket. It is what the commands share
// that can take hours.
type sweep struct {
	*direct
	sweepOptions
	command *cobra.Command
	out     io.Writer     // output for people
	format  string        // text or json
	json    *json.Encoder // nil for text
	written error         // the first error of writing to stdout
	stop    context.CancelCauseFunc
	bar     *progress
	at      position
	grace   time.Duration // see walk.Walk.Grace

	counts walk.Counts
	parts  int64 // multipart objects among those done
	bytes  int64 // of those done
}

type sweepOptions struct {
	client, state     string
	dryRun, keepGoing bool
	parallel          int
	rate              float64
	longOptions
}

// longOptions are options of commands that can take long.
type longOptions struct {
	after string
	patience
}

func (o *longOptions) declare(flags *pflag.FlagSet) {
	flags.StringVar(&o.after, flagAfter, "", "begin after this `KEY`, as a run that was stopped says")
	o.patience.declare(flags)
}

// patience is how long a command waits for a store or a KMS that is silent.
type patience struct{ giveUp time.Duration }

func (o *patience) declare(flags *pflag.FlagSet) {
	flags.DurationVar(
		&o.giveUp, "give-up", 40*time.Second,
		"end if the store or the KMS answers nothing for this `TIME`; 0 waits for ever",
	)
}

func (o *patience) check() error {
	if o.giveUp < 0 {
		return usageError{errors.New("--give-up is negative")}
	}
	return nil
}

// declare adds the flags. verb is what the command does with an object.
func (o *sweepOptions) declare(flags *pflag.FlagSet, verb string) {
	flags.StringVar(
		&o.client,
		"client",
		"",
		"`NAME` of the client whose rules apply (default: a client that no rule names)",
	)
	flags.IntVar(&o.parallel, "parallel", 8, "`N` objects at a time")

	flags.Float64Var(&o.rate, "rate", 0, verb+" at most `N` objects per second (default: no limit)")
	flags.StringVar(
		&o.state,
		"state",
		"",
		"`FILE` for the position: a run that was interrupted continues from there",
	)

	flags.BoolVar(&o.keepGoing, "keep-going", false, "continue even if many objects in a row fail")
	o.longOptions.declare(flags)
}

func (o *sweepOptions) check() error {
	if o.rate < 0 {
		return usageError{errors.New("--rate is negative")}
	}
	if o.after != "" && o.state != "" {
		return usageError{errors.New("--state has the position: it cannot be used with --after")}
	}
	return errors.Join(o.longOptions.check(), checkParallel(o.parallel))
}

// wait returns a function that limits the rate; nil for no limit.
func (o *sweepOptions) wait() func(context.Context) error {
	if o.rate == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(o.rate), 1).Wait
}

// tryKey is keyring.Try, but waits for a KMS that cannot be reached. For a
// template, there is nothing to try.
func (s *sweep) tryKey(ctx context.Context, name string) error {
	if s.isTemplate(name) {
		return nil
	}
	for {
		err := s.keys.Try(ctx, name)
		switch {
		case ctx.Err() != nil:
			return earlyCause(ctx, err)
		case !kms.IsUnreachable(err) && !kms.IsThrottled(err):
			return err
		}
		s.away(err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// lister lists objects; see stored.Reader.List.
type lister = func(ctx context.Context, l stored.Listing) iter.Seq2[stored.Entry, error]

// inHand is how long the objects in hand may take to end after a signal.
const inHand = 5 * time.Second

// walk calls do for each object, and report in the order of the listing. If
// it does not reach the end, the error says how to go on.
func (s *sweep) walk(
	ctx context.Context,
	state walk.State,
	list lister,
	do func(context.Context, stored.Entry) walk.Result,
	report func(walk.Result),
) error {
	state.Bucket, state.Prefix, state.After = s.bucket, s.prefix, s.after
	s.at.after = s.after
	begun, seen := false, false
	w := walk.Walk{
		Do: func(ctx context.Context, e stored.Entry) walk.Result {
			r := do(ctx, e)
			s.done(e, r)
			return r
		},
		List:      list,
		Parallel:  s.parallel,
		File:      s.state,
		DryRun:    s.dryRun,
		KeepGoing: s.keepGoing,
		Grace:     s.grace,
		Now:       time.Now,
		Begin: func(todo iter.Seq2[stored.Entry, error]) {
			begun = true
			s.bar.start(ctx, todo)
		},
		Report: func(r walk.Result) {
			seen = true
			s.at.passed(r.Key, r.Outcome == walk.Failed && !r.Own)
			s.count(r)
			report(r)
		},
	}

	defer context.AfterFunc(ctx, func() { s.sayStopping(ctx) })()
	err := w.Run(ctx, state)
	s.bar.end()
	if err == nil && !seen {
		s.sayEmpty(s.after)
	}
	if err != nil && begun {
		err = s.early(ctx, err, seen)
	}
	return err
}

// sayStopping says that the objects in hand are finished after a signal.
func (s *sweep) sayStopping(ctx context.Context) {
	if signal, ok := errors.AsType[signalError](context.Cause(ctx)); ok && s.grace > 0 {
		fmt.Fprintf(s.progress, "%s: finishing the objects in hand, for %s at most; a second signal ends at once\n",
			signalName(signal.Signal), s.grace)
	}
}

// done records an object for the progress, and whether the KMS is there.
func (s *sweep) done(e stored.Entry, r walk.Result) {
	s.bar.add(amount{1, e.Size})
	if r.Outcome == walk.Failed {
		s.bar.failed.Add(1)
	}
	if failure := (*kms.Error)(nil); r.Outcome == walk.Done && !s.dryRun ||
		errors.As(r.Err, &failure) && !kms.IsUnreachable(r.Err) {
		s.kmsWatch.Answered()
	}
}

// early returns the error of a run that did not reach its end.
func (s *sweep) early(ctx context.Context, err error, seen bool) error {
	cause := earlyCause(ctx, err)
	e := &early{cause: cause}
	switch {
	case errors.Is(cause, encrypt.ErrLost), !seen && errors.Is(err, cause): // nothing to go on with
	case s.state != "":
		e.resume = resumeLine(s.command, "")
	default:
		e.resume = resumeLine(s.command, s.at.after)
	}
	return e
}

func (s *sweep) count(r walk.Result) {
	s.counts[r.Outcome]++
	if r.Outcome == walk.Done {
		s.bytes += max(r.Size, 0)
		if r.Parts != 0 {
			s.parts++
		}
	}
}

// rewriting returns the configuration that encrypt and rewrap share. The
// caller must call done.
func (s *sweep) rewriting(ctx context.Context) (_ inplace.Config, done func(), _ error) {
	// A second keyring has an empty cache, so it asks the KMS for data keys
	// that the first one has just wrapped.
	again, err := openBackend(ctx, s.cfg, zap.NewNop(), "", nil)
	if err != nil {
		return inplace.Config{}, nil, err
	}
	return inplace.Config{
		Send: s.send, Keys: s.keys, Check: (&direct{backend: again}).open, Client: s.client,
		OpenEnd: s.cfg.Origin.UniformParts,
		DryRun:  s.dryRun, Wait: s.wait(), Away: s.away, Random: rand.Reader,
	}, again.close, nil
}

// versions prints a note if the bucket keeps old versions.
func (s *sweep) versions(ctx context.Context, note string) bool {
	kept, err := s.keepsVersions(ctx)
	switch {
	case err != nil:
		fmt.Fprintf(s.out, "note: cannot find out whether the bucket keeps old versions: %v\n", err)
	case kept:
		fmt.Fprintln(s.out, "note: the bucket keeps old versions. "+note)
	}
	return kept
}

// keepsVersions reports whether versioning of the bucket is, or was,
// enabled.
func (s *sweep) keepsVersions(ctx context.Context) (bool, error) {
	resp, err := s.send(s.aboutBucket(ctx, http.MethodGet, "versioning="))
	if stored.StatusOf(err) == http.StatusNotImplemented {
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

package main

import (
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// sweep is a run over all objects of a bucket. It is what the commands share
// that can take hours.
type sweep struct {
	*direct
	sweepOptions
	out io.Writer // output for people
	bar *progressbar.ProgressBar

	waiting     sync.Mutex
	waitingSaid time.Time

	counts walk.Counts
	parts  int64 // multipart objects among those done
	bytes  int64 // of those done
}

type sweepOptions struct {
	client, state     string
	dryRun, keepGoing bool
	parallel          int
	rate              float64
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
}

func (o *sweepOptions) check() error {
	if o.rate < 0 {
		return usageError{errors.New("--rate is negative")}
	}
	return checkParallel(o.parallel)
}

// wait returns a function that limits the rate; nil for no limit.
func (o *sweepOptions) wait() func(context.Context) error {
	if o.rate == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(o.rate), 1).Wait
}

// awayInterval is how often a run reports that it waits for a KMS.
const awayInterval = time.Minute

// away reports that the run waits for a KMS.
func (s *sweep) away(err error) {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	if now := time.Now(); now.Sub(s.waitingSaid) >= awayInterval {
		s.waitingSaid = now
		fmt.Fprintf(s.progress, "waiting for the KMS: %v\n", err)
	}
}

// tryKey is keyring.Try, but waits for a KMS that cannot be reached. For a
// template, there is nothing to try.
func (s *sweep) tryKey(ctx context.Context, name string) error {
	if s.isTemplate(name) {
		return nil
	}
	for {
		err := s.keys.Try(ctx, name)
		if !kms.IsUnreachable(err) && !kms.IsThrottled(err) || ctx.Err() != nil {
			return err
		}
		s.away(err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

// lister lists objects; see stored.Reader.List.
type lister = func(ctx context.Context, l stored.Listing) iter.Seq2[stored.Entry, error]

// walk calls do for each object, and report in the order of the listing. If
// objects have failed, it returns an error at the end.
func (s *sweep) walk(
	ctx context.Context,
	state walk.State,
	list lister,
	do func(context.Context, stored.Entry) walk.Result,
	report func(walk.Result),
) error {
	s.bar = counter(s.progress, "objects")
	state.Bucket, state.Prefix = s.bucket, s.prefix
	w := walk.Walk{
		Do:        do,
		List:      list,
		Parallel:  s.parallel,
		File:      s.state,
		DryRun:    s.dryRun,
		KeepGoing: s.keepGoing,
		Now:       time.Now,
		Report: func(r walk.Result) {
			_ = s.bar.Add(1)
			s.count(r)
			report(r)
		},
	}
	err := w.Run(ctx, state)
	_ = s.bar.Finish()
	return err
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

// name prints an object that failed.
func (s *sweep) name(r walk.Result) {
	if r.Outcome == walk.Failed {
		fmt.Fprintf(s.out, "FAILED  %s: %v\n", visible(r.Key), r.Err)
	}
}

// failures returns an error if objects have failed.
func (s *sweep) failures() error {
	if failed := s.counts[walk.Failed]; failed > 0 {
		return fmt.Errorf("%d objects failed", failed)
	}
	return nil
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
	req := &http.Request{
		Method: http.MethodGet,
		URL:    &url.URL{Path: "/" + s.bucket, RawQuery: "versioning="},
		Header: make(http.Header),
	}

	resp, err := s.send(req.WithContext(ctx))
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

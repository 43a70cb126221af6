package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
)

// ending is how a run has ended, in the summaries of its JSON output.
type ending struct {
	Complete bool   `json:"complete"`        // the run has reached its end
	After    string `json:"after,omitempty"` // else the value of --after that continues it, unless it has a --state
	Error    string `json:"error,omitempty"` // and the reason
}

// print says that the totals are those of a part.
func (e ending) print(w io.Writer) error {
	if e.Complete {
		return nil
	}
	_, err := fmt.Fprintln(w, "INCOMPLETE: the run did not reach its end")
	return err
}

// endingOf returns the ending for the error of a run.
func endingOf(err error, after string) ending {
	if err == nil {
		return ending{Complete: true}
	}
	e := ending{After: after, Error: err.Error()}
	if stopped, ok := errors.AsType[*early](err); ok {
		e.Error = stopped.cause.Error()
	}
	return e
}

// swept is an object that encrypt or rewrap has written, or that failed.
type swept struct {
	Type      string `json:"type"` // object
	Key       string `json:"key"`
	Outcome   string `json:"outcome"`             // done, or failed
	Size      int64  `json:"size"`                // of the plaintext, in bytes, if done
	Multipart bool   `json:"multipart,omitempty"` // if done
	Error     string `json:"error,omitempty"`
}

// sweptTotals is the summary of a run of encrypt or rewrap.
type sweptTotals struct {
	Type      string `json:"type"` // summary
	Command   string `json:"command"`
	DryRun    bool   `json:"dry_run"` // done are those that would be
	Done      int64  `json:"done"`
	Bytes     int64  `json:"bytes"` // of plaintext, of those done
	Multipart int64  `json:"multipart"`
	Current   int64  `json:"current"`   // nothing was necessary
	Plaintext int64  `json:"plaintext"` // skipped
	Gone      int64  `json:"gone"`
	Customer  int64  `json:"customer_keys"`
	Failed    int64  `json:"failed"`
	ending
}

// declareFormat adds --format for commands that write objects.
func (s *sweep) declareFormat(flags *pflag.FlagSet) {
	flags.StringVar(&s.format, "format", "text", "text, or json (one object per line)")
}

// output sets where the run writes to. Text for which the format has no place
// goes to stderr.
func (s *sweep) output(stdout io.Writer) error {
	s.out, s.grace = s.withProgress(stdout), inHand
	switch s.format {
	case "text":
	case "json":
		s.json = json.NewEncoder(s.out)
		s.json.SetEscapeHTML(false)
		s.out = s.progress
	default:
		return usageError{fmt.Errorf("--format is %q, and must be text or json", s.format)}
	}
	return nil
}

// withProgress makes the progress, and returns stdout for output beside it.
func (s *sweep) withProgress(stdout io.Writer) io.Writer {
	s.bar = newProgress(s.progress, s.command.Name(), workOfBodies)
	s.progress = s.bar.above(s.progress)
	return s.bar.above(stdout)
}

// report prints an object that failed; in JSON, also those that are done.
func (s *sweep) report(r walk.Result) {
	switch {
	case s.json == nil && r.Outcome == walk.Failed:
		fmt.Fprintf(s.out, "FAILED  %s: %v\n", visible(r.Key), r.Err)
	case s.json == nil:
	case r.Outcome == walk.Failed:
		s.write(swept{Type: "object", Key: r.Key, Outcome: "failed", Error: r.Err.Error()})
	case r.Outcome == walk.Done:
		s.write(swept{Type: "object", Key: r.Key, Outcome: "done", Size: r.Size, Multipart: r.Parts != 0})
	}
}

func (s *sweep) write(line any) { s.wrote(s.json.Encode(line)) }

// wrote ends the run if its output cannot be written.
func (s *sweep) wrote(err error) {
	if err != nil && s.written == nil {
		s.written = fmt.Errorf("writing the output: %w", err)
		s.stop(s.written)
	}
}

// end prints the summary, and returns the error of the command.
func (s *sweep) end(err error, text func()) error {
	ending := endingOf(err, s.at.after)
	if s.json == nil {
		text()
		s.wrote(ending.print(s.out))
	} else {
		c := s.counts
		s.write(sweptTotals{
			Type: "summary", Command: s.command.Name(), DryRun: s.dryRun,
			Done: c[walk.Done], Bytes: s.bytes, Multipart: s.parts,
			Current: c[walk.Current], Plaintext: c[walk.Plaintext], Gone: c[walk.Gone], Customer: c[walk.Customer],
			Failed: c[walk.Failed], ending: ending,
		})
	}

	var failed error
	if n := s.counts[walk.Failed]; n > 0 {
		failed = fmt.Errorf("%d objects failed", n)
	}
	return errors.Join(err, s.written, failed)
}

// begin starts to watch the store and the KMS.
func (s *sweep) begin(ctx context.Context) (_ context.Context, stop func()) {
	ctx, stopWatch := s.watch(ctx, s.giveUp)
	ctx, cancel := context.WithCancelCause(ctx)
	s.stop = cancel
	return ctx, func() { cancel(nil); stopWatch() }
}

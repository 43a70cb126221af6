package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
)

// position is the key up to which all objects of a listing are done, for
// --after.
type position struct {
	versions bool   // the listing has all versions: a key is done when the next one begins
	after    string // "" for none
	current  string // the key that is being done, if versions is set
	again    bool   // a version of it must be done again
}

// passed records an object, in the order of the listing. again means that it
// must be done again, because the store or a key was at fault. If an object
// after it succeeds, it counts as a single object that failed.
func (p *position) passed(key string, again bool) { //nolint:revive // again is about the object
	switch {
	case !p.versions:
		if !again {
			p.after = key
		}
		return
	case key != p.current:
		if p.current != "" && !p.again {
			p.after = p.current
		}
		p.current, p.again = key, false
	}
	p.again = p.again || again
}

// early is the error of a run that did not reach its end.
type early struct {
	cause  error
	resume string // the command line that continues it; "" if there is none
}

func (e *early) Error() string {
	if e.resume == "" {
		return e.cause.Error()
	}
	return e.cause.Error() + "\nto continue: " + e.resume
}

func (e *early) Unwrap() error { return e.cause }

// earlyCause returns why a run has ended: the cause of its context's end if
// that has made it fail, else err.
func earlyCause(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	silent := (*inplace.SilentError)(nil)
	switch signal := (signalError{}); {
	case errors.As(cause, &signal):
		return stoppedError{signal}
	case errors.As(cause, &silent):
		return silent
	default:
		return err
	}
}

// stoppedError says which signal has stopped a run.
type stoppedError struct{ signalError }

func (s stoppedError) Error() string { return "stopped by " + signalName(s.Signal) }

func (s stoppedError) Unwrap() error { return s.signalError }

// resumeLine returns the command line that continues a run after a key. With
// after "", it is the same line again.
func resumeLine(c *cobra.Command, after string) string {
	words := []string{c.CommandPath()}
	c.Flags().Visit(func(f *pflag.Flag) {
		switch {
		case f.Name == flagAfter && after != "":
		case f.Value.Type() == "bool" && f.Value.String() == "true":
			words = append(words, "--"+f.Name)
		case f.Value.Type() == "bool":
			words = append(words, "--"+f.Name+"=false")
		default:
			words = append(words, "--"+f.Name, shellWord(f.Value.String()))
		}
	})

	if after != "" {
		words = append(words, "--"+flagAfter, shellWord(after))
	}
	for _, arg := range c.Flags().Args() {
		words = append(words, shellWord(arg))
	}
	return strings.Join(words, " ")
}

// flagAfter is the flag for the position.
const flagAfter = "after"

// shellWord quotes a word for a shell. In words with characters that could
// control the terminal, these are escaped as bash and other shells read them.
func shellWord(word string) string {
	if strings.IndexFunc(word, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return shellQuote(word)
	}
	var b strings.Builder
	b.WriteString("$'")
	for _, c := range []byte(word) {
		switch {
		case c == '\'' || c == '\\':
			b.WriteString("\\" + string(rune(c)))
		case c < ' ' || c >= 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String() + "'"
}

// exitCode returns the exit code for an error: 2 for an invalid command line,
// 128 and the number of the signal if one has stopped the command, else 1.
func exitCode(ctx context.Context, err error) int {
	var usage usageError
	var signal signalError
	switch {
	case errors.As(err, &usage):
		return 2
	case errors.As(err, &signal), errors.Is(err, context.Canceled) && errors.As(context.Cause(ctx), &signal):
		if number, ok := signal.Signal.(syscall.Signal); ok {
			return 128 + int(number)
		}
	}
	return 1
}

// signalName returns the name of a signal that stops commands.
func signalName(s os.Signal) string {
	switch s {
	case os.Interrupt:
		return "SIGINT"
	case syscall.SIGTERM:
		return "SIGTERM"
	default:
		return s.String()
	}
}

// sayEmpty says that there was nothing to do. The exit code stays 0, because a
// script may run before the first object is there.
func (d *direct) sayEmpty(after string) {
	target := crypt.Object{Bucket: d.bucket, Key: d.prefix}
	what := "bucket " + strconv.Quote(target.Bucket) + " has no objects"
	if target.Key != "" {
		what = "no object begins with s3://" + target.Bucket + "/" + visible(target.Key)
	}
	if after != "" {
		what += " and comes after " + strconv.Quote(after)
	}
	fmt.Fprintln(d.progress, what)
}

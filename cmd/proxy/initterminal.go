package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// terminal asks at a terminal.
type terminal struct {
	file *os.File
	in   *bufio.Reader
	out  io.Writer
}

func newTerminal(in *os.File, out io.Writer) *terminal {
	return &terminal{file: in, in: bufio.NewReader(in), out: out}
}

// line implements asker.
func (t *terminal) line(ctx context.Context, prompt string) (string, error) {
	return t.read(ctx, prompt, func() (string, error) { return t.in.ReadString('\n') })
}

// secret implements asker: it reads a line without echo.
func (t *terminal) secret(ctx context.Context, prompt string) (string, error) {
	return t.read(ctx, prompt, func() (string, error) {
		text, err := term.ReadPassword(int(t.file.Fd()))
		fmt.Fprintln(t.out)
		return string(text), err
	})
}

// read prints a prompt and reads a line. It returns when ctx ends, as after
// Ctrl-C.
func (t *terminal) read(ctx context.Context, prompt string, read func() (string, error)) (string, error) {
	fmt.Fprint(t.out, prompt)
	before, err := term.GetState(int(t.file.Fd()))
	if err != nil {
		return "", err
	}

	type result struct {
		text string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := read()
		done <- result{text, err}
	}()

	select {
	case r := <-done:
		if errors.Is(r.err, io.EOF) {
			return "", errors.New("the input ended before an answer")
		}
		return strings.TrimRight(r.text, "\r\n"), r.err
	case <-ctx.Done():
		_ = term.Restore(int(t.file.Fd()), before) // the echo, if it is off
		fmt.Fprintln(t.out)
		return "", context.Cause(ctx)
	}
}

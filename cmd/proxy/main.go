// Command proxy is cmekproxy: an S3 endpoint that encrypts what passes through
// it under the customer's KMS key. It is built under the name cmekproxy:
//
//	go build -o cmekproxy ./cmd/proxy
//
// Where things are:
//
//	commandline.go  what the commands have in common: flags, arguments, errors
//	open.go         the store and the keys, which all commands are built on
//	keeping.go      keeping keys working: opening, trying, opening again
//	server.go       the server, which is the S3 API on top of them
//	serve.go        serve: ports, requests until a signal, drain.go: after it
//	direct.go       commands that work on a bucket without a server
//	sweep.go        those of them that can take hours
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := begin()
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// begin comes before any command. Hardening that the system does not allow is
// no reason not to work.
func begin() (ctx context.Context, stop func()) {
	if err := harden(); err != nil {
		fmt.Fprintf(os.Stderr, "cmekproxy: warning: %v\n", err)
	}
	return untilSignal()
}

// run returns the exit code: 0 for success, 1 for failure, 2 for a command line
// that makes no sense. An error is one line on stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetArgs(doubleDashes(root, args))

	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}

	fmt.Fprintf(stderr, "%s: %v\n", command.CommandPath(), err)
	if usage := (usageError{}); errors.As(err, &usage) {
		return 2
	}
	return 1
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "cmekproxy",
		Short: "An S3 endpoint that encrypts what passes through it under the customer's KMS key",
		Args:  noCommand,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },

		Version:       versionString(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}

	root.SetVersionTemplate(versionLine() + "\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cobra.EnableCommandSorting = false // they are in the order in which one needs them

	root.AddCommand(
		devCommand(),
		serveCommand(),
		checkCommand(),
		keysCommand(),
		decryptCommand(),
		inventoryCommand(),
		rewrapCommand(),
		encryptCommand(),
		verifyCommand(),
		versionCommand(),
	)

	return root
}

// noCommand refuses a command that does not exist.
func noCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var near strings.Builder
	c.SuggestionsMinimumDistance = 2
	for _, name := range c.SuggestionsFor(args[0]) {
		fmt.Fprintf(&near, "; did you mean %q?", name)
	}
	return usageError{fmt.Errorf("unknown command %q%s (%s help lists them)", args[0], &near, c.CommandPath())}
}

// Command proxy is cmekproxy, an S3 proxy that encrypts objects with the
// customer's KMS key. Build it under the name cmekproxy:
//
//	go build -o cmekproxy ./cmd/proxy
//
// Where things are:
//
//	commandline.go  flags, arguments and errors of all commands
//	open.go         the store and the keys, which every command needs
//	keeping.go      opening keys, trying them, and opening them again
//	server.go       the server: the S3 API on top of store and keys
//	serve.go        the command serve: ports, and requests until a signal
//	drain.go        the end of serve, after the signal
//	check.go        the command check, with checkserver.go and checkstore.go
//	direct.go       commands that work on a bucket without a server
//	sweep.go        commands that work on all objects of a bucket
//	progress.go     what they show meanwhile
//	resume.go       how they are continued
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
)

func main() {
	cobra.EnableCommandSorting = false // they are in the order in which one needs them
	ctx, stop := begin()
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// begin runs before any command. If the system does not allow hardening, it
// prints a warning and continues.
func begin() (ctx context.Context, stop func()) {
	if err := harden(); err != nil {
		fmt.Fprintln(os.Stderr, forJournal(os.Stderr, zap.WarnLevel, fmt.Sprintf("cmekproxy: warning: %v", err)))
	}
	return untilSignal()
}

// run returns the exit code: 0 for success, or see exitCode. It prints an
// error on stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetArgs(doubleDashes(root, args))

	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}

	fmt.Fprintln(stderr, forJournal(stderr, zap.ErrorLevel, fmt.Sprintf("%s: %v", command.CommandPath(), err)))
	return exitCode(ctx, err)
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "cmekproxy",
		Short: "An S3 proxy that encrypts objects with the customer's KMS key",
		Args:  noCommand,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },

		Version:       versionString(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}

	root.SetVersionTemplate(versionLine() + "\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		devCommand(),
		initCommand(),
		configCommand(),
		serveCommand(),
		checkCommand(),
		healthCommand(),
		cleanerCommand(),
		keysCommand(),
		recoveryCommand(),
		tenantCommand(),
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

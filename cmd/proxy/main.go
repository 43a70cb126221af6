// Command proxy is cmekproxy: an S3 endpoint that encrypts what passes through it under the customer's KMS key.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	ctx, stop := begin()
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// begin is what comes before any command. Hardening that the system does not
// allow is no reason not to work.
func begin() (ctx context.Context, stop func()) {
	if err := harden(); err != nil {
		fmt.Fprintf(os.Stderr, "proxy: warning: %v\n", err)
	}
	return untilSignal()
}

// command is one subcommand. Its error goes to standard error, and the process exits with 1.
type command struct {
	name    string
	summary string
	run     func(ctx context.Context, args []string, stdout io.Writer) error
}

var commands = []command{
	{"dev", "a whole S3 endpoint on this machine, with its own store and key, to try things out", dev},
	{"serve", "the proxy, in front of a store", serve},
	{"check", "test the configuration, the store and every key; exit 1 on any failure", check},
	{"keys", "make, rotate, disable and list local keys (provider local)", keys},
	{"decrypt", "read one object straight from the store, without a proxy running", decrypt},
	{"inventory", "which KMS key protects which object of a bucket", inventoryCommand},
	{"rewrap", "move the objects of a bucket to another KMS key", rewrapCommand},
	{"encrypt", "encrypt in place what a bucket holds in plaintext", encryptCommand},
	{"verify", "read all objects of a bucket to their last byte; exit 1 if any does not verify", verifyCommand},
	{"version", "print the version", version},
}

// run returns the exit code: 0 for success, 1 for failure, 2 for a command line that makes no sense.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		usage(stdout)
		return 0
	}
	for _, c := range commands {
		if c.name != args[0] {
			continue
		}
		err := c.run(ctx, args[1:], stdout)
		switch usage := (usageError{}); {
		case err == nil, errors.Is(err, flag.ErrHelp):
			return 0
		case errors.As(err, &usage):
			fmt.Fprintf(stderr, "proxy %s: %v\n", c.name, err)
			return 2
		default:
			fmt.Fprintf(stderr, "proxy %s: %v\n", c.name, err)
			return 1
		}
	}
	fmt.Fprintf(stderr, "proxy: unknown command %q\n\n", args[0])
	usage(stderr)
	return 2
}

func usage(w io.Writer) {
	fmt.Fprint(w, "cmekproxy, an encrypting S3 proxy\n\nUsage: proxy COMMAND [flags]      (proxy COMMAND -h lists the flags)\n\n")
	for _, c := range commands {
		fmt.Fprintf(w, "  %-9s  %s\n", c.name, c.summary)
	}
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

// parse reads the flags of a subcommand, which takes no other arguments.
func parse(flags *flag.FlagSet, args []string, stdout io.Writer) error {
	rest, err := parseArguments(flags, args, stdout)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", rest[0])}
	}
	return nil
}

// parseArguments reads flags and other arguments, in any order, and returns the others.
func parseArguments(flags *flag.FlagSet, args []string, stdout io.Writer) (others []string, err error) {
	flags.SetOutput(stdout)
	for {
		if err := flags.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, usageError{err}
		}
		if flags.NArg() == 0 {
			return others, nil
		}
		others, args = append(others, flags.Arg(0)), flags.Args()[1:]
	}
}

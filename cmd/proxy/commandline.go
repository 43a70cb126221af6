package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// usageError is the error for an invalid command line.
type usageError struct{ error }

// noArguments refuses arguments other than flags.
func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

// oneArgument requires exactly one argument besides flags. what is its name
// in errors.
func oneArgument(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) != 1:
			return usageError{fmt.Errorf("want one %s, got %d", what, len(args))}
		case args[0] == "":
			return usageError{fmt.Errorf("%s is empty", what)}
		default:
			return nil
		}
	}
}

// doubleDashes adds a dash to long flags with one dash, such as -config,
// which earlier documentation used. It removes a dash from single-letter
// flags with two.
func doubleDashes(root *cobra.Command, args []string) []string {
	command, _, err := root.Find(args)
	if err != nil {
		return args
	}
	out := make([]string, len(args))
	copy(out, args)

	for i, arg := range args {
		if arg == "--" {
			break
		}

		name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		switch dashes := len(arg) - len(strings.TrimLeft(arg, "-")); {
		case dashes == 1 && len(name) > 1 && isFlag(command, name):
			out[i] = "-" + arg
		case dashes == 2 && len(name) == 1:
			out[i] = arg[1:]
		}
	}

	return out
}

// isFlag reports whether a command has a long flag with this name.
func isFlag(c *cobra.Command, name string) bool {
	found := name == "help" || name == "version" && c.Version != ""
	c.Flags().VisitAll(func(f *pflag.Flag) { found = found || f.Name == name })
	return found
}

// configFlag adds --config to a command.
func configFlag(c *cobra.Command) *string {
	return c.Flags().String("config", "", "`FILE` with the configuration, - for standard input "+
		"(default: the value of $"+config.PathVariable+", else "+config.DefaultPath+")")
}

// readConfigText reads the file that --config names, and returns its path.
func readConfigText(flag string) (path string, text []byte, err error) {
	//nolint:forbidigo // hands the environment to internal/config
	path, named := config.Locate(flag, os.LookupEnv)
	text, err = config.Read(path)
	if !named && errors.Is(err, os.ErrNotExist) {
		return path, nil, usageError{
			fmt.Errorf("no configuration: give --config FILE or set %s (%s does not exist)", config.PathVariable, path),
		}
	}
	return path, text, err
}

// readOffline reads the configuration of the store and the keys, for
// commands that need no server.
func readOffline(flag string) (*config.Config, error) {
	path, text, err := readConfigText(flag)
	if err != nil {
		return nil, err
	}
	//nolint:forbidigo // hands the environment to internal/config
	return config.ParseOffline(path, text, os.LookupEnv)
}

// parseObject parses s3://bucket/key.
func parseObject(arg string) (crypt.Object, error) {
	obj, err := parseBucket(arg)
	if err == nil && obj.Key == "" {
		err = usageError{fmt.Errorf("%q is not of the form s3://bucket/key", arg)}
	}
	return obj, err
}

// parseBucket parses s3://bucket or s3://bucket/prefix.
func parseBucket(arg string) (crypt.Object, error) {
	rest, ok := strings.CutPrefix(arg, "s3://")
	bucket, prefix, _ := strings.Cut(rest, "/")
	if !ok || bucket == "" {
		return crypt.Object{}, usageError{fmt.Errorf("%q is not of the form s3://bucket or s3://bucket/prefix", arg)}
	}
	return crypt.Object{Bucket: bucket, Key: prefix}, nil
}

// checkParallel refuses an invalid value of --parallel.
func checkParallel(n int) error {
	if n < 1 || n > 1000 {
		return usageError{fmt.Errorf("--parallel is %d, and must be from 1 to 1000", n)}
	}
	return nil
}

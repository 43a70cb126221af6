package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// keysCommand is one subcommand of `proxy keys`. All but bind take the FILE of a key, and print what it then holds.
type keysCommand struct {
	name    string
	flags   string
	summary string
	run     func(ctx context.Context, args []string, stdout io.Writer) error
}

var keysCommands = []keysCommand{
	{"new", "", "make a key file with a new random key", noContext(keysNew)},
	{"import", "[--from FILE|-]", "make a key file with a key of yours: raw, hex, base64 or PEM", noContext(keysImport)},
	{"rotate", "", "add a version, which encrypts from then on; older ones go on to decrypt", noContext(keysRotate)},
	{"disable", "[--version N]", "switch off the key, or one version of it", noContext(keysDisable)},
	{"enable", "[--version N]", "switch it on again", noContext(keysEnable)},
	{"destroy", "--version N --yes", "remove the key of a version for ever, and with it all that it protects", noContext(keysDestroy)},
	{"list", "", "print the versions; never a key", noContext(keysList)},
	{"bind", "--config FILE", "print a binding for the Azure RSA key of that NAME in the configuration", keysBind},
}

// noContext is for commands that wait for nobody.
func noContext(run func(args []string, stdout io.Writer) error) func(context.Context, []string, io.Writer) error {
	return func(_ context.Context, args []string, stdout io.Writer) error { return run(args, stdout) }
}

// keys looks after the key files of provider local. Proxies that run notice a change by themselves.
func keys(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "-help" || args[0] == "--help" {
		keysUsage(stdout)
		return nil
	}
	for _, c := range keysCommands {
		if c.name != args[0] {
			continue
		}
		err := c.run(ctx, args[1:], stdout)
		if err == nil || errors.Is(err, flag.ErrHelp) {
			return err
		}
		if usage := (usageError{}); errors.As(err, &usage) {
			return usageError{fmt.Errorf("%s: %w", c.name, usage.error)}
		}
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return usageError{fmt.Errorf("unknown command %q (proxy keys -h lists them)", args[0])}
}

func keysUsage(w io.Writer) {
	fmt.Fprint(w, "Key files of provider local, and bindings of azure-keyvault\n\n"+
		"Usage: proxy keys COMMAND FILE [flags]\n       proxy keys bind NAME --config FILE [flags]\n\n")
	for _, c := range keysCommands {
		fmt.Fprintf(w, "  %-7s  %-17s  %s\n", c.name, c.flags, c.summary)
	}
}

func keysNew(args []string, stdout io.Writer) error {
	path, err := parseKeyFile(flag.NewFlagSet("keys new", flag.ContinueOnError), args, stdout)
	if err != nil {
		return err
	}
	if err := kms.CreateLocalKeyFile(path); err != nil {
		return err
	}
	return listKey(path, stdout)
}

// keysImport takes no key as an argument: those end up in the shell's history, and everybody's ps shows them.
func keysImport(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("keys import", flag.ContinueOnError)
	from := flags.String("from", "-", "`FILE` with the key; - for standard input")
	path, err := parseKeyFile(flags, args, stdout)
	if err != nil {
		return err
	}
	source := os.Stdin
	if *from != "-" {
		if source, err = os.Open(*from); err != nil {
			return err
		}
		defer source.Close()
	}
	key, err := readKey(source)
	if err != nil {
		return err
	}
	defer clear(key)
	if err := kms.ImportLocalKeyFile(path, key); err != nil {
		return err
	}
	return listKey(path, stdout)
}

// maxKeyText is more than any form of a key takes.
const maxKeyText = 4096

func readKey(source io.Reader) ([]byte, error) {
	text := make([]byte, maxKeyText+1)
	defer clear(text)
	n, err := io.ReadFull(source, text)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	if n > maxKeyText {
		return nil, fmt.Errorf("more than %d bytes: that is no key", maxKeyText)
	}
	return parseKey(text[:n])
}

func keysRotate(args []string, stdout io.Writer) error {
	path, err := parseKeyFile(flag.NewFlagSet("keys rotate", flag.ContinueOnError), args, stdout)
	if err != nil {
		return err
	}
	return changeKey(path, stdout, func(f *kms.LocalKeyFile) error {
		_, err := f.Rotate(time.Now())
		return err
	})
}

func keysDisable(args []string, stdout io.Writer) error {
	return switchKey("keys disable", kms.LocalKeyDisabled, args, stdout)
}

func keysEnable(args []string, stdout io.Writer) error {
	return switchKey("keys enable", kms.LocalKeyEnabled, args, stdout)
}

func switchKey(name string, state kms.LocalKeyState, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	version := versionFlag(flags, "`N`umber of the version (default: the key as a whole)")
	path, err := parseKeyFile(flags, args, stdout)
	if err != nil {
		return err
	}
	return changeKey(path, stdout, func(f *kms.LocalKeyFile) error {
		if *version == 0 {
			f.Disabled = state == kms.LocalKeyDisabled
			return nil
		}
		return f.SetState(*version, state)
	})
}

func keysDestroy(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("keys destroy", flag.ContinueOnError)
	version := versionFlag(flags, "`N`umber of the version")
	yes := flags.Bool("yes", false, "it is meant: nothing can undo it")
	path, err := parseKeyFile(flags, args, stdout)
	if err != nil {
		return err
	}
	if *version == 0 {
		return usageError{errors.New("--version N is missing")}
	}
	if !*yes {
		return usageError{fmt.Errorf("whatever version %d encrypted is lost for ever; say --yes if that is meant", *version)}
	}
	return changeKey(path, stdout, func(f *kms.LocalKeyFile) error { return f.SetState(*version, kms.LocalKeyDestroyed) })
}

func keysList(args []string, stdout io.Writer) error {
	path, err := parseKeyFile(flag.NewFlagSet("keys list", flag.ContinueOnError), args, stdout)
	if err != nil {
		return err
	}
	return listKey(path, stdout)
}

// parseKeyFile reads flags and the one FILE, in any order.
func parseKeyFile(flags *flag.FlagSet, args []string, stdout io.Writer) (path string, err error) {
	files, err := parseArguments(flags, args, stdout)
	if err != nil {
		return "", err
	}
	if len(files) != 1 || files[0] == "" {
		return "", usageError{fmt.Errorf("one FILE is wanted, not %d", len(files))}
	}
	return files[0], nil
}

// versionFlag is 0 where it is not given, which no version is.
func versionFlag(flags *flag.FlagSet, usage string) *int {
	version := new(int)
	flags.Func("version", usage, func(value string) (err error) {
		if *version, err = strconv.Atoi(value); err != nil || *version < 1 {
			return errors.New("not the number of a version")
		}
		return nil
	})
	return version
}

func changeKey(path string, stdout io.Writer, change func(*kms.LocalKeyFile) error) error {
	if err := kms.ChangeLocalKeyFile(path, change); err != nil {
		return err
	}
	return listKey(path, stdout)
}

// listKey prints in one piece, as the change before it has been made by then.
func listKey(path string, stdout io.Writer) error {
	file, err := kms.ReadLocalKeyFile(path)
	if err != nil {
		return err
	}
	file.Wipe()
	state := kms.LocalKeyEnabled
	if file.Disabled {
		state = kms.LocalKeyDisabled
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s  %s\n", file.ID, state)
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "VERSION\tSTATE\tCREATED\n")
	for i, v := range file.Versions {
		created := "unknown"
		if !v.Created.IsZero() {
			created = v.Created.Format(time.RFC3339)
		}
		fmt.Fprintf(table, "%d\t%s\t%s\n", i+1, v.State, created)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err = stdout.Write(out.Bytes())
	return err
}

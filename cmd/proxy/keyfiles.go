package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// keysCommand manages the key files of provider local. Running proxies
// notice a change by themselves.
func keysCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "keys",
		Short: "Create, rotate, disable and list local keys (provider local)",
		Long:  "Manage key files of provider local, and print bindings for azure-keyvault.",
		Args:  noCommand,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}

	c.AddCommand(
		keyFileCommand("new", "Create a key file with a random key", keysNew),
		keysImportCommand(),
		keyFileCommand("rotate", "Add a version that encrypts from now on; older versions still decrypt", keysRotate),
		keysSwitchCommand("disable", "Disable the key, or one version of it", kms.LocalKeyDisabled),
		keysSwitchCommand("enable", "Enable the key, or one version of it", kms.LocalKeyEnabled),
		keysDestroyCommand(),
		keyFileCommand("list", "Print the versions, without the keys", listKey),
		keysBindCommand(),
	)

	return c
}

// keyFileCommand returns a command that works on the key file FILE, and
// prints its versions afterwards.
func keyFileCommand(name, short string, run func(path string, stdout io.Writer) error) *cobra.Command {
	return &cobra.Command{
		Use:   name + " FILE",
		Short: short,
		Args:  oneArgument("FILE"),
		RunE:  func(c *cobra.Command, args []string) error { return run(args[0], c.OutOrStdout()) },
	}
}

func keysNew(path string, stdout io.Writer) error {
	if err := kms.CreateLocalKeyFile(path); err != nil {
		return err
	}
	return listKey(path, stdout)
}

// keysImportCommand does not take the key as an argument: arguments end up
// in the shell's history, and ps shows them to all users.
func keysImportCommand() *cobra.Command {
	var from string
	c := keyFileCommand(
		"import",
		"Create a key file with your own key: raw, hex, base64 or PEM",
		func(path string, stdout io.Writer) error {
			return keysImport(path, from, stdout)
		},
	)
	c.Flags().StringVar(&from, "from", "-", "`FILE` with the key; - for standard input")
	return c
}

func keysImport(path, from string, stdout io.Writer) error {
	source := os.Stdin
	if from != "-" {
		var err error
		if source, err = os.Open(from); err != nil {
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

// maxKeyText is longer than a key in any form, in bytes.
const maxKeyText = 4096

func readKey(source io.Reader) ([]byte, error) {
	text := make([]byte, maxKeyText+1)
	defer clear(text)
	n, err := io.ReadFull(source, text)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	if n > maxKeyText {
		return nil, fmt.Errorf("more than %d bytes: this is not a key", maxKeyText)
	}
	return parseKey(text[:n])
}

func keysRotate(path string, stdout io.Writer) error {
	return changeKey(path, stdout, func(f *kms.LocalKeyFile) error {
		_, err := f.Rotate(time.Now())
		return err
	})
}

func keysSwitchCommand(name, short string, state kms.LocalKeyState) *cobra.Command {
	var version versionNumber
	c := keyFileCommand(name, short, func(path string, stdout io.Writer) error {
		return changeKey(path, stdout, func(f *kms.LocalKeyFile) error {
			if version == 0 {
				f.Disabled = state == kms.LocalKeyDisabled
				return nil
			}
			return f.SetState(int(version), state)
		})
	})
	c.Flags().Var(&version, "version", "`N`umber of the version (default: the whole key)")
	return c
}

func keysDestroyCommand() *cobra.Command {
	var version versionNumber
	var yes bool
	c := keyFileCommand(
		"destroy",
		"Destroy a version of the key; objects under it become unreadable",
		func(path string, stdout io.Writer) error {
			switch {
			case version == 0:
				return usageError{errors.New("--version N is missing")}
			case !yes:
				return usageError{
					fmt.Errorf("objects under version %d become unreadable forever; give --yes to confirm", version),
				}
			}

			return changeKey(
				path,
				stdout,
				func(f *kms.LocalKeyFile) error { return f.SetState(int(version), kms.LocalKeyDestroyed) },
			)
		},
	)

	c.Flags().Var(&version, "version", "`N`umber of the version")
	c.Flags().BoolVar(&yes, "yes", false, "confirm: this cannot be undone")
	return c
}

// versionNumber is the value of --version; 0 means that the flag is not
// given.
type versionNumber int

func (v *versionNumber) String() string {
	if *v == 0 {
		return ""
	}
	return strconv.Itoa(int(*v))
}

func (v *versionNumber) Set(value string) error {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		return errors.New("not a version number")
	}
	*v = versionNumber(n)
	return nil
}

func (v *versionNumber) Type() string { return "N" }

func changeKey(path string, stdout io.Writer, change func(*kms.LocalKeyFile) error) error {
	if err := kms.ChangeLocalKeyFile(path, change); err != nil {
		return err
	}
	return listKey(path, stdout)
}

// listKey prints all lines at once, so that they are complete even though
// the file was already changed.
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

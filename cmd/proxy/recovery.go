package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cmekproxy/cmekproxy/internal/atomicfile"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

func recoveryCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "recovery",
		Short: "Recovery keys, which open objects if the KMS key is lost",
		Args:  noArguments,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(recoveryKeygenCommand())
	return c
}

func recoveryKeygenCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "keygen",
		Short: "Make a recovery key: a private key to keep offline, and a public key for the configuration",
		Args:  noArguments,
	}
	c.Flags().StringVarP(&output, "output", "o", "recovery.key", "`FILE` for the private key, which must not exist")
	c.RunE = func(c *cobra.Command, _ []string) error { return recoveryKeygen(output, c.OutOrStdout()) }
	return c
}

// recoveryKeygen writes a new private key into a file, and prints what to do
// with it.
func recoveryKeygen(path string, stdout io.Writer) error {
	key, err := kms.GenerateRecoveryKey()
	if err != nil {
		return err
	}
	if err := atomicfile.Create(path, []byte(key.Text()+"\n")); err != nil {
		return err
	}
	fmt.Fprintf(stdout, recoveryCeremony, path, key.Public().ID(), key.Public().Text())
	return nil
}

const recoveryCeremony = `The private key is in %[1]s. Anyone who has it can read every object that is
written while its public key is configured, also after the KMS key is revoked.

1. Do this on a machine that is offline, and that you wipe afterward.
2. Split the private key, so that two of three people can restore it and one
   cannot. With the Debian package ssss:
     ssss-split -t 2 -n 3 -w cmekproxy < %[1]s
   Give each share to another person, on paper. Restore it once, before you
   delete the file: ssss-combine -t 2
3. Delete %[1]s.
4. Put the public key into the configuration of the KMS key (%[2]s):

recovery_public_key: %[3]s

5. Objects that exist already get it with: cmekproxy rewrap s3://BUCKET
6. Try it once a year: cmekproxy decrypt --recovery-key FILE s3://BUCKET/KEY
`

// declareRecovery declares the flag for the private key.
func declareRecovery(flags *pflag.FlagSet, path *string) {
	flags.StringVar(
		path, "recovery-key", "",
		"`FILE` with the private recovery key, which opens objects without their KMS key",
	)
}

// readRecoveryKey reads a private key; it returns nil if path is empty.
func readRecoveryKey(path string) (kms.Wrapper, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	key, err := kms.ParseRecoveryPrivateKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return kms.RecoveredKey(key), nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

func keysBindCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "bind NAME",
		Short: "Print a binding for the Azure RSA key NAME of the configuration",
		Args:  oneArgument("NAME of a key"),
	}
	path := configFlag(c)

	again := c.Flags().Int(
		"again",
		0,
		"wrap the `N`th binding of the configuration again, with the newest version of the key "+
			"(default: a new binding)",
	)

	c.RunE = func(c *cobra.Command, args []string) error {
		return keysBind(c.Context(), *path, args[0], *again, c.OutOrStdout())
	}
	return c
}

// keysBind prints a binding for an Azure key. The binding goes into the
// configuration of all proxies. It is not a secret: only the vault can
// unwrap it.
func keysBind(ctx context.Context, path, name string, again int, stdout io.Writer) error {
	cfg, err := readOffline(path)
	if err != nil {
		return err
	}

	i := slices.IndexFunc(cfg.Keys, func(k config.Key) bool { return k.Name == name })
	if i < 0 {
		return fmt.Errorf("the configuration has no key %q", name)
	}

	key := cfg.Keys[i]
	if key.Provider != config.AzureKeyVault || key.Algorithm == kms.AzureA256KW {
		return fmt.Errorf("key %s needs no binding: only RSA keys of azure-keyvault do", key.Name)
	}
	if again < 0 || again > len(key.Bindings) {
		return usageError{fmt.Errorf("--again is %d, and the key has %d bindings", again, len(key.Bindings))}
	}

	wrapper, err := buildWrapper(ctx, key, nil)
	if err != nil {
		return err
	}

	text := ""
	if again > 0 {
		text = key.Bindings[again-1]
	}
	return printBinding(ctx, wrapper, text, stdout)
}

// printBinding makes a new binding. If again is a binding, it wraps that one
// again.
func printBinding(ctx context.Context, w kms.Wrapper, again string, stdout io.Writer) error {
	binder, ok := w.(interface {
		Bind(ctx context.Context, again string) (string, error)
	})
	if !ok {
		return errors.New("the key cannot be bound")
	}
	binding, err := binder.Bind(ctx, again)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, binding)
	return err
}

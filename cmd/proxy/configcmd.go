package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// configCommand has the commands for configuration files that need neither a
// store nor a key.
func configCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Print a minimal configuration, or validate one offline",
		Args:  noCommand,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(configExampleCommand(), configValidateCommand())
	return c
}

func configExampleCommand() *cobra.Command {
	var provider string
	c := &cobra.Command{
		Use:   "example",
		Short: "Print a minimal configuration for a KMS",
		Args:  noArguments,
	}
	c.Flags().StringVar(&provider, "provider", string(config.AWSKMS), "`PROVIDER` of the key: "+providerNames())
	c.RunE = func(c *cobra.Command, _ []string) error {
		kind, err := findKind(provider)
		if err != nil {
			return usageError{fmt.Errorf("--provider: %w", err)}
		}
		example := exampleOf(kind)
		text, err := example.text()
		if err != nil {
			return err
		}
		_, err = c.OutOrStdout().Write(text)
		return err
	}
	return c
}

func providerNames() string {
	var names []string
	for _, kind := range kmsKinds {
		names = append(names, string(kind.provider))
	}
	return strings.Join(names, ", ")
}

func configValidateCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "validate FILE",
		Short: "Validate a configuration file offline, as in CI; exit 1 if it is not valid",
		Long: "Validates a configuration file without a store, a key or a network. Environment variables and files " +
			"with secrets need not exist; those that do are checked too. FILE may be - for standard input.",
		Args: oneArgument("FILE"),
	}
	c.Flags().StringVar(&format, "format", "text", "`FORMAT`: text, or json (one object per line)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if format != "text" && format != "json" {
			return usageError{fmt.Errorf("--format is %q, and must be text or json", format)}
		}
		return configValidate(c.Context(), args[0], format, c.OutOrStdout())
	}
	return c
}

// configProblem is a line of the JSON report.
type configProblem struct {
	Type   string `json:"type"` // problem
	File   string `json:"file"`
	Line   int    `json:"line"` // counted from 1
	Column int    `json:"column"`
	Error  string `json:"error"`
}

// configTotals is its last line.
type configTotals struct {
	Type     string `json:"type"` // summary
	File     string `json:"file"`
	Problems int    `json:"problems"`
	// Environment variables, as ${NAME}, and files that do not exist here.
	NotChecked []string `json:"not_checked"`
}

func configValidate(ctx context.Context, path, format string, stdout io.Writer) error {
	text, err := readUntil(ctx, path)
	if err != nil {
		return err
	}
	//nolint:forbidigo // hands the environment to internal/config
	absent, err := config.Validate(path, text, os.LookupEnv)
	var problems []config.Problem
	if wrong, ok := errors.AsType[*config.Error](err); ok {
		problems = wrong.Problems
	} else if err != nil {
		return err
	}

	if format == "json" {
		err = writeProblems(stdout, path, problems, absent)
	} else if len(problems) == 0 {
		err = writeValid(stdout, path, absent)
	}
	switch {
	case err != nil && len(problems) == 0, format == "text":
		return err
	case len(problems) > 0:
		return fmt.Errorf("%s has %d problems", path, len(problems))
	}
	return nil
}

// readUntil reads a configuration, which may be typed at a terminal, until ctx
// ends.
func readUntil(ctx context.Context, path string) ([]byte, error) {
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := config.Read(path)
		done <- result{text, err}
	}()

	select {
	case r := <-done:
		return r.text, r.err
	case <-ctx.Done():
		return nil, earlyCause(ctx, ctx.Err())
	}
}

func writeValid(stdout io.Writer, path string, absent []string) error {
	_, err := fmt.Fprintf(stdout, "%s is valid\n", path)
	if len(absent) > 0 {
		_, err = fmt.Fprintf(stdout, "not checked, because they do not exist here: %s\n", strings.Join(absent, ", "))
	}
	return err
}

func writeProblems(stdout io.Writer, path string, problems []config.Problem, absent []string) error {
	e := json.NewEncoder(stdout)
	e.SetEscapeHTML(false)
	for _, p := range problems {
		if err := e.Encode(configProblem{"problem", p.File, p.Line, p.Column, p.Text}); err != nil {
			return err
		}
	}
	return e.Encode(configTotals{"summary", path, len(problems), append([]string{}, absent...)})
}

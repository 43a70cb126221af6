package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cmekproxy/cmekproxy/internal/atomicfile"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

func initCommand() *cobra.Command {
	var path string
	var force bool
	given := make(map[string]*string)
	c := &cobra.Command{
		Use:   "init",
		Short: "Write a minimal configuration: asks at a terminal, or takes flags",
		Long: "Writes a minimal configuration that cmekproxy check can test. At a terminal it asks for what no flag " +
			"says. Secrets go to files beside the configuration, or come from the environment.",
		Args: noArguments,
	}

	c.Flags().StringVar(&path, "config", "config.yaml", "`FILE` to write, with mode 0600")
	c.Flags().BoolVar(&force, "force", false, "overwrite FILE; files with secrets and keys are kept")
	for _, q := range allQuestions() {
		if given[q.flag] == nil {
			given[q.flag] = c.Flags().String(q.flag, "", q.usage())
		}
	}

	c.RunE = func(c *cobra.Command, _ []string) error {
		absolute, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		s := &setup{path: absolute, force: force, given: given, out: c.OutOrStdout()}
		if in, ok := c.InOrStdin().(*os.File); ok && term.IsTerminal(int(in.Fd())) {
			s.ask = newTerminal(in, c.OutOrStdout())
		}
		return s.run(c.Context())
	}
	return c
}

// setup collects the answers for a minimal configuration, and writes it.
type setup struct {
	path  string // absolute
	force bool
	given map[string]*string // flags by name; "" for one that was not given
	ask   asker              // nil without a terminal
	out   io.Writer

	minimal
	credentials string            // an answer to questionCredentials
	secrets     map[string]string // files to create, by path
}

// asker asks for one line. A secret is not shown.
type asker interface {
	line(ctx context.Context, prompt string) (string, error)
	secret(ctx context.Context, prompt string) (string, error)
}

func (s *setup) run(ctx context.Context) error {
	if _, err := os.Lstat(s.path); err == nil && !s.force {
		return fmt.Errorf("%s exists: give --force to overwrite it, or another --config", s.path)
	}
	s.minimal, s.secrets = exampleOf(&kmsKinds[0]), make(map[string]string)
	s.Endpoint, s.Region = "https://s3.example.com", "us-east-1"

	var missing []string
	answer := func(list []question) error {
		for _, q := range list {
			if q.skip != nil && q.skip(s) {
				continue
			}
			err := s.answer(ctx, q)
			if errors.Is(err, errNoAnswer) {
				missing = append(missing, "--"+q.flag)
				continue
			}
			if err != nil {
				return err
			}
		}
		return nil
	}

	if err := answer(firstQuestions); err != nil {
		return err
	}
	kind, err := findKind(string(s.Provider))
	if err != nil {
		return err
	}
	if err := answer(keyQuestions(kind)); err != nil {
		return err
	}
	if err := answer(lastQuestions); err != nil {
		return err
	}
	if len(missing) > 0 {
		return usageError{fmt.Errorf("there is no terminal to ask at: give %s", strings.Join(missing, ", "))}
	}
	return s.write()
}

// errNoAnswer is returned if neither a flag nor a terminal has the answer.
var errNoAnswer = errors.New("no answer")

// answer takes the answer to a question from its flag, or else asks until it
// is right.
func (s *setup) answer(ctx context.Context, q question) error {
	if given := s.given[q.flag]; given != nil && *given != "" {
		if err := q.take(s, *given); err != nil {
			return usageError{fmt.Errorf("--%s: %w", q.flag, err)}
		}
		return nil
	}
	if s.ask == nil || q.quiet {
		if q.fallback == "" {
			return errNoAnswer
		}
		return q.take(s, q.fallback)
	}

	prompt := cmp.Or(q.prompt, q.text)
	switch {
	case q.fallback != "":
		prompt += " [" + q.fallback + "]"
	case q.example != "":
		prompt += " (such as " + q.example + ")"
	}
	for {
		read, take := s.ask.line, q.take
		if q.typed != nil {
			read, take = s.ask.secret, q.typed
		}
		value, err := read(ctx, prompt+": ")
		if err != nil {
			return fmt.Errorf("%s: %w; nothing was written", q.text, err)
		}
		if value = strings.TrimSpace(value); value == "" {
			value = q.fallback
		}

		if value == "" {
			err = errors.New("an answer is needed")
		} else {
			err = take(s, value)
		}
		if err == nil {
			return nil
		}
		fmt.Fprintf(s.out, "  %v\n", err)
	}
}

// check refuses what the configuration refuses.
func (s *setup) check() error {
	text, err := s.text()
	if err != nil {
		return err
	}
	//nolint:forbidigo // hands the environment to internal/config
	_, err = config.Validate("config", text, os.LookupEnv)
	if wrong, ok := errors.AsType[*config.Error](err); ok {
		return errors.New(wrong.Problems[0].Text)
	}
	return err
}

// write creates the files: first what the configuration needs, then itself.
func (s *setup) write() error {
	secret := filepath.Join(filepath.Dir(s.path), clientSecretFile)
	if s.ClientSecret == "file:"+literal(secret) && !exists(secret) {
		random := make([]byte, 30)
		_, _ = rand.Read(random) // never fails
		s.secrets[secret] = base64.StdEncoding.EncodeToString(random)
	}
	text, err := s.text()
	if err != nil {
		return err
	}

	var made []string
	for path, secret := range s.secrets {
		if err := atomicfile.Create(path, []byte(secret+"\n")); err != nil {
			return fmt.Errorf("creating a file for a secret: %w", err)
		}
		made = append(made, path)
	}
	if key := s.Key["key_file"]; s.Provider == config.Local && !exists(key) {
		if err := kms.CreateLocalKeyFile(key); err != nil {
			return err
		}
		made = append(made, key)
	}

	create := atomicfile.Create
	if s.force {
		create = func(path string, data []byte) error { return atomicfile.Replace(path, data, nil) }
	}
	if err := create(s.path, text); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return s.report(made)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// report prints what to do next. It prints no secret.
func (s *setup) report(made []string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "wrote %s\n", s.path)
	for _, path := range made {
		fmt.Fprintf(&b, "created %s\n", path)
	}
	fmt.Fprintf(&b, "clients use the access key %s; its secret is in %s\n",
		s.ClientAccessKey, strings.TrimPrefix(s.ClientSecret, "file:"))
	if s.credentials == credentialsEnv {
		b.WriteString("set ORIGIN_ACCESS_KEY and ORIGIN_SECRET_KEY to the credentials for the store\n")
	}
	if s.Provider == config.PKCS11 {
		b.WriteString("set HSM_PIN to the PIN of the token\n")
	}

	fmt.Fprintf(&b, "\nnext:\n  cmekproxy check --config %s", shellQuote(s.path))
	if bucket := s.Buckets[0]; !strings.Contains(bucket, "*") {
		fmt.Fprintf(&b, " --bucket %s", bucket)
	}
	fmt.Fprintf(&b, "\n  cmekproxy serve --config %s\n", shellQuote(s.path))
	_, err := io.WriteString(s.out, b.String())
	return err
}

var plainPath = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,-]+$`)

func shellQuote(path string) string {
	if plainPath.MatchString(path) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// literal returns a value in which nothing is taken for a variable.
func literal(value string) string { return strings.ReplaceAll(value, "${", "$${") }

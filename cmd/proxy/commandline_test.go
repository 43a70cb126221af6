package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
)

// The source of the configuration: the flag, else the environment, else the
// default path.
func TestConfigFlag(t *testing.T) {
	config := writeConfig(t, refusing(t), "127.0.0.1:0", "127.0.0.1:1")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}

	for name, row := range map[string]struct {
		variable, stdin string
		args            []string
		code            int
		want            string
	}{
		"flag":                      {"", "", []string{"--config", config}, 1, "configuration " + config},
		"one dash":                  {"", "", []string{"-config", config}, 1, "configuration " + config},
		"one dash, with a value":    {"", "", []string{"-config=" + config}, 1, "configuration " + config},
		"environment":               {config, "", nil, 1, "configuration " + config},
		"flag before environment":   {"/gone", "", []string{"--config", config}, 1, "configuration " + config},
		"standard input":            {"", string(text), []string{"--config", "-"}, 1, "configuration -"},
		"environment, and no file":  {"/gone", "", nil, 1, "open /gone: no such file"},
		"nothing":                   {"", "", nil, 2, "/etc/cmekproxy/config.yaml does not exist"},
		"no text on standard input": {"", "", []string{"--config", "-"}, 1, "the file is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("CMEKPROXY_CONFIG", row.variable)
			useStdin(t, row.stdin)
			var out bytes.Buffer
			code := run(t.Context(), append([]string{"check"}, row.args...), &out, &out)
			if code != row.code || !strings.Contains(out.String(), row.want) {
				t.Errorf("exit code %d, want %d; printed %q, want %q", code, row.code, &out, row.want)
			}
		})
	}
}

// useStdin sets the text of the test's standard input.
func useStdin(t *testing.T, text string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer w.Close()
		_, _ = io.WriteString(w, text)
	}()
	before := os.Stdin
	os.Stdin = r
	t.Cleanup(func() { os.Stdin = before; r.Close() })
}

// An invalid command line prints one line on stderr, with the name of the
// command, and nothing on stdout.
func TestWrongCommandLines(t *testing.T) {
	for name, row := range map[string]struct{ args, want string }{
		"unknown command":      {"destroy", `cmekproxy: unknown command "destroy"`},
		"near a command":       {"rewarp", `did you mean "rewrap"?`},
		"near a subcommand":    {"keys rotat", `did you mean "rotate"?`},
		"unknown flag":         {"serve --confg x", "cmekproxy serve: unknown flag: --confg"},
		"unknown, single dash": {"serve -confg x", "cmekproxy serve: unknown shorthand flag"},
		"value missing":        {"rewrap s3://b --to", "cmekproxy rewrap: flag needs an argument: --to"},
		"not a number":         {"inventory s3://b --parallel many", "cmekproxy inventory: invalid argument"},
		"argument too many":    {"serve here", `cmekproxy serve: unexpected argument "here"`},
		"subcommand":           {"keys destroy", "cmekproxy keys destroy: want one FILE, got 0"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), strings.Fields(row.args), &stdout, &stderr)
			if code != 2 || stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 ||
				!strings.Contains(stderr.String(), row.want) {
				t.Errorf("exit code %d, stdout %q, stderr %q, want one line with %q", code, &stdout, &stderr, row.want)
			}
		})
	}
}

// Requested help is printed on stdout.
func TestHelp(t *testing.T) {
	for args, want := range map[string]string{
		"":                     "Available Commands:",
		"help":                 "Available Commands:",
		"-h":                   "Available Commands:",
		"-help":                "Available Commands:",
		"help rewrap":          "cmekproxy rewrap s3://BUCKET[/PREFIX]",
		"rewrap --help":        "cmekproxy rewrap s3://BUCKET[/PREFIX]",
		"help keys import":     "cmekproxy keys import FILE",
		"--version":            "cmekproxy devel",
		"-version":             "cmekproxy devel",
		"version":              "cmekproxy devel",
		"completion bash":      "complete -o default",
		"completion zsh":       "#compdef cmekproxy",
		"completion fish":      "complete -c cmekproxy",
		"__complete keys rota": "rotate",
	} {
		t.Run(args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), strings.Fields(args), &stdout, &stderr); code != 0 ||
				!strings.Contains(stdout.String(), want) {
				t.Errorf("exit code %d, stdout %q, want %q; stderr %q", code, &stdout, want, &stderr)
			}
		})
	}
}

package config_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

func TestSecretIsNotPrinted(t *testing.T) {
	const value = "hunter2-hunter2"
	c := parse(t, replace(t, "in-the-clear", value))
	s := c.Clients[0].SecretKey
	if s.Reveal() != value {
		t.Fatalf("Reveal gives %q", s.Reveal())
	}

	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T and %v", "%10.3s"} {
		args := []any{s, s}[:strings.Count(verb, "%")]
		if strings.Contains(verb, "%10") {
			args = args[:1]
		}
		if got := fmt.Sprintf(verb, args...); !strings.Contains(got, "[redacted]") || leaks(got, value) {
			t.Errorf("%s gives %q", verb, got)
		}
	}

	asJSON, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}

	asText, err := s.MarshalText()
	if err != nil {
		t.Fatal(err)
	}

	for _, got := range []string{
		fmt.Sprint(c), fmt.Sprintf("%+v", *c), fmt.Sprintf("%#v", c.Clients), fmt.Sprintf("%#v", &c.Clients[0]),
		s.String(), s.GoString(), string(asJSON), string(asText),
	} {
		if leaks(got, value) {
			t.Errorf("the secret is in %s", got)
		}
	}

	if got := fmt.Sprintf("%#v", *c); leaks(got, value) {
		t.Errorf("the secret is in %s", got)
	}
}

// leaks reports whether text contains a useful part of a secret.
func leaks(text, secret string) bool {
	return strings.Contains(text, secret[:5]) || strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", secret[:5]))
}

// TestSecretIsInNoError writes a secret in every wrong way.
func TestSecretIsInNoError(t *testing.T) {
	const value = "hunter2-hunter2"
	env := environment(map[string]string{"HUNTER": value, "SHORT": "hunter2", "SPACES": value + "\n"})

	tests := map[string]string{
		"in a list":                "[" + value + "]",
		"in a mapping":             "{" + value + ": x}",
		"key of nothing":           "{" + value + "}",
		"as an anchor":             "&" + value + " x",
		"as an alias":              "*" + value,
		"as a tag":                 "!" + value + " x",
		"as a bad tag":             "!{" + value + " x",
		"as a named tag":           "!" + value + "!x y",
		"with a colon":             value + ": more",
		"as a directive":           "%" + value,
		"after an open quote":      "\"" + value,
		"with a bad escape":        "\"" + value + "\\q\"",
		"with an open variable":    "${" + value,
		"with a bad variable":      "${" + value + "}",
		"around a variable":        "pa${hunter2_hunter2}word",
		"too short":                "hunter2",
		"too short by environment": "${SHORT}",
		"with white space":         "\" " + value + "\"",
		"a space by environment":   "${SPACES}",
		"as a file":                "file:" + value,
		"as a file by environment": "file:${HUNTER}",
		"twice":                    value + "\n    secret_key: " + value,
		"of a client twice":        value + "\n    access_key: AK2",
		"under another name":       "[]\n    secret: " + value,
	}

	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse("c.yaml", []byte(replace(t, "in-the-clear", text)), env)
			if err == nil {
				t.Fatal("no error")
			}
			if leaks(err.Error(), value) {
				t.Errorf("the secret is in %v", err)
			}
		})
	}

	// Errors contain no environment variables either, not even in settings
	// that are not secret: a secret may be there by mistake.
	for _, change := range [][2]string{
		{"http://127.0.0.1:7070", "http://user:${HUNTER}@h"},
		{"http://127.0.0.1:7070", "${HUNTER}"},
		{"provider: local", "provider: ${HUNTER}"},
		{"key: default", "key: ${HUNTER}"},
		{"listen: 127.0.0.1:9000", "listen: ${HUNTER}"},
		{"    key_file: /k", "    key_file: /k\n    region: ${HUNTER}"},
		{"[read]", `["${HUNTER}"]`},
	} {
		_, err := config.Parse("c.yaml", []byte(replace(t, change[0], change[1])), env)
		if err == nil || leaks(err.Error(), value) {
			t.Errorf("%s: %v", change[1], err)
		}
	}
}

func TestSecretFromFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}

		return path
	}

	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}

	gone, world, link := filepath.Join(dir, "gone"), write("world", "filesecret", 0o604), filepath.Join(dir, "link")
	if err := os.Symlink(world, link); err != nil {
		t.Fatal(err)
	}

	empty, line, big := write("empty", "", 0o600), write("line", "\n", 0o600), write("big",
		strings.Repeat("x", 4097), 0o600)
	execute := write("execute", "filesecret", 0o601)
	tests := []struct{ name, path, want string }{
		{"no line feed", write("plain", "filesecret", 0o600), ""},
		{"line feed", write("lf", "filesecret\n", 0o400), ""},
		{"line feed of Windows", write("crlf", "filesecret\r\n", 0o600), ""},
		{"readable by the group", write("group", "filesecret", 0o640), ""},
		{"readable by all", world, world + " has mode 0604: all users can access it (fix: chmod o= FILE)"},
		{"a link to one", link, link + " has mode 0604: all users can access it (fix: chmod o= FILE)"},
		{"executable by all", execute, execute + " has mode 0601: all users can access it (fix: chmod o= FILE)"},
		{"not there", gone, "open " + gone + ": no such file or directory"},
		{"a directory", dir, dir + " is not a regular file"},
		{"a named pipe", pipe, pipe + " is not a regular file"},
		{"empty", empty, empty + " is empty"},
		{"line feed only", line, line + " is empty"},
		{"large", big, big + " is larger than 4096 bytes"},
		{"two lines at its end", write("two", "filesecret\n\n", 0o600), "it begins or ends with white space"},
		{"relative", "plain", "file: needs an absolute path"},
		{"no path", "", "file: needs an absolute path"},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := config.Parse("c.yaml", []byte(replace(t, "in-the-clear", `"file:`+tt.path+`"`)), environment(nil))
			if tt.want == "" {
				if err != nil || c.Clients[0].SecretKey.Reveal() != "filesecret" {
					t.Errorf("got %v, %v", c, err)
				}
				return
			}

			if want := "c.yaml:8:17: clients[0].secret_key: " + tt.want; err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}

	t.Run("path with a variable", func(t *testing.T) {
		c, err := config.Parse("c.yaml", []byte(replace(t, "in-the-clear", "file:${DIR}/plain")),
			environment(map[string]string{"DIR": dir}))
		if err != nil || c.Clients[0].SecretKey.Reveal() != "filesecret" {
			t.Errorf("got %v, %v", c, err)
		}
	})

	t.Run("not by way of the environment", func(t *testing.T) {
		c, err := config.Parse("c.yaml", []byte(replace(t, "in-the-clear", "${S}")),
			environment(map[string]string{"S": "file:" + gone}))
		if err != nil || c.Clients[0].SecretKey.Reveal() != "file:"+gone {
			t.Errorf("got %v, %v", c, err)
		}
	})
}

func TestExpansion(t *testing.T) {
	env := environment(map[string]string{
		"A": "aaaaaaaa", "B_2": "bb", "EMPTY": "", "NESTED": "${A}-nested", "PORT": "9100", "N": "7", "ON": "false",
		"TTL": "30s",
	})

	const missing = "${ must be followed by the name of an environment variable and }; write $${ for a literal ${"
	tests := []struct{ text, want, wantErr string }{
		{"${A}", "aaaaaaaa", ""},
		{"x${A}y${B_2}z", "xaaaaaaaaybbz", ""},
		{"'${A}'", "aaaaaaaa", ""},
		{`"${A}"`, "aaaaaaaa", ""},
		{"${NESTED}", "${A}-nested", ""}, // not expanded again
		{"$${A}-literal", "${A}-literal", ""},
		{"$$${A}-literal", "$${A}-literal", ""},
		{"$${${A}}", "${aaaaaaaa}", ""},
		{"$A-literal", "$A-literal", ""},
		{"cost-$$-9", "cost-$$-9", ""},
		{"{A}-literal", "", "8:17: clients[0].secret_key must be a string, not a mapping"},
		{"${NOPE}", "", "8:17: clients[0].secret_key: the environment variable NOPE is not set"},
		{"${EMPTY}", "", "8:17: clients[0].secret_key: the environment variable EMPTY is empty"},
		{"${}", "", "8:17: clients[0].secret_key: " + missing},
		{"${A", "", "8:17: clients[0].secret_key: " + missing},
		{"${A-b}", "", "8:17: clients[0].secret_key: " + missing},
		{"${A:-b}", "", "8:17: clients[0].secret_key: " + missing},
		{"${2A}", "", "8:17: clients[0].secret_key: " + missing},
		{"${A}${", "", "8:17: clients[0].secret_key: " + missing},
		{`""`, "", "8:17: clients[0].secret_key: it is empty"},
	}

	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			text := replace(t, "in-the-clear", tt.text)
			if strings.HasPrefix(tt.text, "{") {
				text = replace(t, "in-the-clear", "{A: b}")
			}

			c, err := config.Parse("c.yaml", []byte(text), env)
			switch {
			case tt.wantErr == "" && (err != nil || c.Clients[0].SecretKey.Reveal() != tt.want):
				t.Errorf("got %v, want %q", err, tt.want)
			case tt.wantErr != "" && (err == nil || err.Error() != "c.yaml:"+tt.wantErr):
				t.Errorf("got  %v\nwant c.yaml:%s", err, tt.wantErr)
			}
		})
	}

	t.Run("any type", func(t *testing.T) {
		text := replace(t, "listen: 127.0.0.1:9000", "listen: 127.0.0.1:${PORT}") +
			`dek_cache: {max_entries: "${N}", ttl: "${TTL}"}` + "\n"
		text = strings.Replace(text, "  region: us-east-1", "  region: ${A}\n  path_style: ${ON}", 1)
		c, err := config.Parse("c.yaml", []byte(text), env)
		if err != nil {
			t.Fatal(err)
		}

		if c.Listen != "127.0.0.1:9100" || c.DEKCache.MaxEntries != 7 || c.DEKCache.TTL.String() != "30s" ||
			c.Origin.Region != "aaaaaaaa" || c.Origin.PathStyle {
			t.Errorf("got %+v", c)
		}
	})

	t.Run("not in keys", func(t *testing.T) {
		_, err := config.Parse("c.yaml", []byte(base+"${A}: b\n"), env)
		var e *config.Error
		if !errors.As(err, &e) || !strings.HasPrefix(e.Problems[0].Text, `unknown key "${A}"`) {
			t.Errorf("got %v", err)
		}
	})

	t.Run("a setting that is not secret names its variable", func(t *testing.T) {
		_, err := config.Parse("c.yaml", []byte(replace(t, "us-east-1", "eu-${NOPE}-1")), env)
		if err == nil || err.Error() != "c.yaml:4:11: origin.region: the environment variable NOPE is not set" {
			t.Errorf("got %v", err)
		}
	})
}

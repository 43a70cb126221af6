//go:build !nodev

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// When the key owner has to work without the server, its files, its
// environment and its clients may be lost. The commands for buckets need
// none of them.
func TestCommandsWithoutTheServer(t *testing.T) {
	m := newMove(t)
	m.put("k", text(1, 1000))
	m.stopProxy()

	config, err := os.ReadFile(m.both)
	if err != nil {
		t.Fatal(err)
	}
	whole := string(config)

	broken := map[string]string{
		"tls":                      "tls: {cert_file: /gone/tls.crt, key_file: /gone/tls.key, client_ca_file: /gone/ca.crt}",
		"session_credentials_file": "session_credentials_file: /gone/sessions.json",
		"listen":                   "listen: ${POD_ADDRESS}",
		"admin_listen":             "admin_listen: nowhere",
		"health_listen":            "health_listen: nowhere",
		"metrics_listen":           "metrics_listen: nowhere",
		"admin_token":              "admin_token: file:/gone/token",
		"domain":                   `domain: "-"`,
		"domains":                  `domains: ["-"]`,
		"clients":                  "clients: [{name: app, access_key: k, secret_key: file:/gone/secret, allow: []}]",
		"audit":                    "audit: {file: /gone/audit.jsonl, max_files: -1}",
		"log":                      "log: {level: shout}",
		"limits":                   "limits: {idle_timeout: 0s}",
	}

	everything := whole
	for setting, line := range broken {
		everything = replaceSetting(everything, setting, line)
		t.Run(setting, func(t *testing.T) { m.worksOffline(t, replaceSetting(whole, setting, line)) })
	}

	t.Run("all", func(t *testing.T) {
		// Rules may name clients that are not configured.
		m.worksOffline(
			t,
			strings.Replace(everything, "rules: [{", "rules: [{clients: [nobody], buckets: [x], key: old}, {", 1),
		)
	})
	t.Run("what they need", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(whole, m.keys["old"], "/gone/key")), 0o600); err != nil {
			t.Fatal(err)
		}
		m.command(1, "decrypt", "--config", path, "s3://bucket/k", "-o", "-")
	})
}

// worksOffline checks that the commands work with a configuration, and that
// serve does not.
func (m *move) worksOffline(t *testing.T, text string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := m.command(0, "decrypt", "--config", path, "s3://bucket/k", "-o", "-"); out == "" {
		t.Error("nothing was decrypted")
	}

	for _, args := range [][]string{
		{"inventory"}, {"verify"}, {"rewrap", "--to", "new", "--dry-run"}, {"encrypt", "--dry-run"},
	} {
		m.command(0, append(args, "--config", path, "s3://bucket")...)
	}

	var out output
	if code := run(t.Context(), []string{"serve", "--config", path}, &out, &out); code == 0 {
		t.Error("the server has started: the setting is not broken, so that this test shows nothing")
	}
}

// replaceSetting replaces a top-level setting of a configuration, with
// everything below it, or adds it.
func replaceSetting(config, name, line string) string {
	var out strings.Builder
	below := false
	for old := range strings.Lines(config) {
		switch {
		case strings.HasPrefix(old, name+":"):
			below = true
			continue
		case below && strings.HasPrefix(old, " "):
			continue
		}

		below = false
		out.WriteString(old)
	}

	return out.String() + line + "\n"
}

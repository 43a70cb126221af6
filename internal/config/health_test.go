package config_test

import (
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

func TestHealthAddress(t *testing.T) {
	env := func(name string) (string, bool) { return "9005", name == "PORT" }
	for _, row := range []struct{ name, text, want, err string }{
		{name: "its own port", text: "admin_listen: 127.0.0.1:9001\nhealth_listen: 0.0.0.0:9002\n", want: "0.0.0.0:9002"},
		{name: "the admin port", text: "admin_listen: \"[::1]:9003\"\n", want: "[::1]:9003"},
		{name: "the default", text: "listen: :9000\n", want: "127.0.0.1:9001"},
		{name: "the same port as admin", text: "admin_listen: :9001\nhealth_listen: :9001\n", want: ":9001"},
		{name: "a variable", text: "health_listen: \":${PORT}\"\n", want: ":9005"},
		{
			name: "mistakes and secrets elsewhere",
			text: "health_listen: :9002\nlisen: x\nadmin_token: file:/no/such\nclients: ${UNSET}\n", want: ":9002",
		},

		{name: "an unset variable", text: "health_listen: \":${UNSET}\"\n", err: "f.yaml:1:16: "},
		{name: "no port", text: "health_listen: localhost\n", err: "f.yaml:1:16: health_listen must be HOST:PORT"},
		{name: "no port for admin", text: "admin_listen: localhost\n", err: "admin_listen must be HOST:PORT"},
		{name: "any port", text: "health_listen: :0\n", err: "health_listen has port 0"},
		{name: "twice", text: "health_listen: :9002\nhealth_listen: :9003\n", err: "set twice"},
		{name: "a list", text: "- health_listen\n", err: "must be a mapping"},
		{name: "no YAML", text: "health_listen: [", err: "not YAML"},
		{name: "empty", err: "the file is empty"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := config.HealthAddress("f.yaml", []byte(row.text), env)
			if row.err == "" && (err != nil || got != row.want) {
				t.Errorf("%q, %v; want %q", got, err, row.want)
			}
			if row.err != "" && (err == nil || !strings.Contains(err.Error(), row.err)) {
				t.Errorf("%q, %v; want the error %q", got, err, row.err)
			}
		})
	}
}

package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// listeningOn starts a health port on a host, and returns its address.
func listeningOn(t *testing.T, host string, handler http.Handler) string {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler}}
	server.Start()
	t.Cleanup(server.Close)
	return net.JoinHostPort(host, fmt.Sprint(listener.Addr().(*net.TCPAddr).Port))
}

// healthOf writes a configuration with one line, and runs cmekproxy health.
func healthOf(t *testing.T, line string, args ...string) (code int, printed string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	code = run(t.Context(), append([]string{"health", "--config", path}, args...), &out, &out)
	return code, out.String()
}

func TestHealthFindsThePort(t *testing.T) {
	ready := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || r.Method != http.MethodGet {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	// An HTTP proxy in the environment is not for this machine.
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")

	for _, row := range []struct{ name, host, setting string }{
		{"loopback", "127.0.0.1", "health_listen"},
		{"a name", "localhost", "health_listen"},
		{"all interfaces", "0.0.0.0", "health_listen"},
		{"all interfaces, without a host", "", "health_listen"},
		{"IPv6", "::1", "health_listen"},
		{"all interfaces, IPv6", "::", "health_listen"},
		{"the admin port", "127.0.0.1", "admin_listen"},
	} {
		t.Run(row.name, func(t *testing.T) {
			address := listeningOn(t, row.host, ready)
			// Secrets that do not exist are not needed.
			line := fmt.Sprintf("%s: %q\nadmin_token: file:/no/such/file\n", row.setting, address)
			if code, printed := healthOf(t, line); code != 0 || printed != "ready\n" {
				t.Errorf("exit code %d, printed %q", code, printed)
			}
		})
	}
}

func TestHealthFails(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	answer := func(status int, text string) string {
		return listeningOn(t, "127.0.0.1", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/healthz")
			w.WriteHeader(status)
			fmt.Fprint(w, text)
		}))
	}
	hanging := listeningOn(t, "127.0.0.1", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))

	for _, row := range []struct {
		name, address string
		want          string
		args          []string
		code          int
	}{
		{"draining", answer(http.StatusServiceUnavailable, "draining\n"), "503 Service Unavailable: the proxy takes no new clients; draining", nil, 1},
		{"another server", answer(http.StatusNotFound, ""), "404 Not Found: is that the health port of cmekproxy?", nil, 1},
		{"a redirect", answer(http.StatusFound, ""), "302 Found", nil, 1},
		{"nothing listens", freePort(t), "connection refused: is the proxy running, on that port?", nil, 1},
		{"no answer", hanging, "did not answer in time", []string{"--timeout", "50ms"}, 1},
		{"no time", hanging, "--timeout is 0s, and must be more than 0", []string{"--timeout", "0"}, 2},
		{"any port", "127.0.0.1:0", "health_listen has port 0", nil, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			code, printed := healthOf(t, "health_listen: "+row.address+"\n", row.args...)
			if code != row.code || !strings.Contains(printed, row.want) || strings.Count(printed, "\n") != 1 {
				t.Errorf("exit code %d, printed %q; want %d and %q", code, printed, row.code, row.want)
			}
		})
	}
}

func TestHealthOfAProxy(t *testing.T) {
	admin := freePort(t)
	config := writeConfig(t, refusing(t), freePort(t), admin)
	ask := func(args ...string) (int, string) {
		var out bytes.Buffer
		return run(t.Context(), append([]string{"health", "--config", config}, args...), &out, &out), out.String()
	}
	if code, printed := ask(); code != 1 {
		t.Errorf("before the start: exit code %d, printed %q", code, printed)
	}

	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	for _, args := range [][]string{nil, {"--live"}} {
		if code, printed := ask(args...); code != 0 {
			t.Errorf("%q while it serves: exit code %d, printed %q", args, code, printed)
		}
	}

	s.end(t)
	if code, printed := ask("--live"); code != 1 {
		t.Errorf("after the end: exit code %d, printed %q", code, printed)
	}
}

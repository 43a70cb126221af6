//go:build !nodev

package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"google.golang.org/grpc"

	"github.com/cmekproxy/cmekproxy/internal/pemfile/pemtest"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/tracing/tracingtest"
)

// The receiver of spans is tried. The proxy serves without it, so what does
// not work is a warning.
func TestCheckTracing(t *testing.T) {
	store, receiver := proxytest.ServeStore(t), tracingtest.Start(t)
	answers := func(status int, header, text string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Authorization") != "otlp-secret" {
				t.Errorf("%s %s", r.Method, r.URL)
			}
			w.Header().Set("Content-Type", header)
			w.Header().Set("Location", "/login")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, text)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	pemtest.Replace(t, ca, pemtest.New(t, "other").Cert)

	for _, row := range []struct{ name, endpoint, status, part string }{
		{"a receiver", receiver.URL, "ok", "tracing: receiver " + receiver.URL},
		{"a receiver that answers 204", answers(204, "", ""), "ok", "tracing: receiver"},
		{"no such path", answers(404, "text/plain", "404 page not found"), "warn", `answered 404: "404 page not found"; correct tracing.endpoint`},
		{"a wrong token", answers(401, "", ""), "warn", "answered 401; correct tracing.headers"},
		{"a failure", answers(503, "text/plain", "busy"), "warn", `answered 503: "busy"; look into the receiver's log`},
		{"a login page", answers(302, "text/html", "<html>"), "warn", "answered 302 with a web page; correct tracing.endpoint"},
		{"another web server", answers(200, "text/html; charset=utf-8", "<html>"), "warn", "answered 200 with a web page"},
		{"nothing listens", "http://" + freePort(t), "warn", "nothing listens there"},
		{"an unknown authority", secure.URL, "warn", "tracing.ca_file"},
		{"another authority", secure.URL + ", ca_file: " + ca, "warn", "tracing.ca_file"},
		{"TLS to an HTTP port", strings.Replace(receiver.URL, "http:", "https:", 1), "warn", "use http://"},
		{"HTTP to a TLS port", strings.Replace(secure.URL, "https:", "http:", 1), "warn", "use https://"},
		{"a port for gRPC", "http://" + serveGRPC(t), "warn", "4317 is for gRPC"},
	} {
		t.Run(row.name, func(t *testing.T) {
			config := writeConfig(t, store, "127.0.0.1:0", "127.0.0.1:0", "limits:", fmt.Sprintf(
				"tracing: {endpoint: %s, headers: [{name: Authorization, value: otlp-secret}]}\nlimits:", row.endpoint,
			))
			text, findings := checkLines(t, 0, "--config", config)
			wantFinding(t, findings, checkTracing, row.status, row.part)
			if strings.Contains(text, "otlp-secret") {
				t.Errorf("the secret:\n%s", text)
			}
		})
	}
	if n := len(receiver.Spans()); n != 0 {
		t.Errorf("the check has made %d spans", n)
	}
}

// serveGRPC returns the address of a server of gRPC, as on port 4317.
func serveGRPC(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

// A signal ends a check, which says so and removes its test objects. What it
// was testing does not count as a failure.
func TestSignalStopsACheck(t *testing.T) {
	m := &move{t: t, store: proxytest.ServeStore(t)}
	direct, bucket := client(strings.TrimPrefix(m.store, "http://"), proxytest.AccessKey, proxytest.SecretKey), "bucket"
	if _, err := direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}

	for _, row := range []struct {
		name   string
		signal os.Signal
		code   int
	}{
		{"SIGINT", os.Interrupt, 130},
		{"SIGTERM", syscall.SIGTERM, 143},
	} {
		t.Run(row.name, func(t *testing.T) {
			y, hung := m.relay(), make(chan struct{}, 1)
			y.fault.Store(new(func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPost { // the first is an upload, after some objects
					return false
				}
				hung <- struct{}{}
				<-r.Context().Done()
				return true
			}))
			config := writeConfig(t, y.url, "127.0.0.1:0", "127.0.0.1:0")
			cmd, stdout, stderr := process(t, nil, "check", "--config", config, "--bucket", bucket, "--format", "json")
			<-hung
			y.fault.Store(nil)
			send(t, cmd, row.signal)
			_ = cmd.Wait() // the exit code is checked
			if got := cmd.ProcessState.ExitCode(); got != row.code {
				t.Errorf("exit code %d, want %d", got, row.code)
			}
			for _, want := range []string{row.name + ": removing the test objects", "check: stopped by " + row.name} {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("stderr has no %q:\n%s", want, stderr)
				}
			}

			list := rows(t, stdout.String())
			end := list[len(list)-1]
			if end["failed"] != 0.0 || end["complete"] != false || end["error"] != "stopped by "+row.name {
				t.Errorf("%v", end)
			}
			if last := list[len(list)-2]; last["check"] != checkDelete || last["status"] != "ok" {
				t.Errorf("%v", last)
			}
			wantNothingLeft(t, direct, bucket)
		})
	}
}

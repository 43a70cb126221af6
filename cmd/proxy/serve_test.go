package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// TestErrorsOfTheServerAreLogged: errors of net/http are logged as warnings.
func TestErrorsOfTheServerAreLogged(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.WarnLevel)
	a := &server{backend: &backend{cfg: devConfig("", "", ""), log: zap.New(core)}}
	s := httptest.NewUnstartedServer(nil)
	s.Config = a.httpServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("on purpose") }))
	s.StartTLS()
	defer s.Close()

	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	if _, err := conn.Write([]byte("this is not TLS at all\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a handshake that failed is logged", func() bool { return logged(logs, "TLS handshake error") })

	if resp, err := s.Client().Get(s.URL); err == nil {
		resp.Body.Close()
		t.Fatal("a handler that panics has answered")
	}
	eventually(t, "a panic is logged", func() bool { return logged(logs, "on purpose") })
}

func logged(logs *observer.ObservedLogs, text string) bool {
	for _, entry := range logs.All() {
		if strings.Contains(entry.Message, text) && entry.Level == zap.WarnLevel {
			return true
		}
	}
	return false
}

func TestShortSecrets(t *testing.T) {
	clients := []config.Client{
		{Name: "short", SecretKey: "nineteen-characters"},
		{Name: "good", SecretKey: "twenty-characters-ok"},
		{Name: "all", Anonymous: true},
	}
	if got := shortSecrets(clients); !slices.Equal(got, []string{"short"}) {
		t.Errorf("%q", got)
	}
}

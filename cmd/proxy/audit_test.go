package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/audit"
)

// auditRecords reads an audit log.
func auditRecords(t *testing.T, path string) (records []audit.Record) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var r audit.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		records = append(records, r)
	}
	return records
}

// waitRecord waits until the last record of the log is for an event.
func waitRecord(t *testing.T, path, event, operation string) audit.Record {
	t.Helper()
	for range 600 {
		if _, err := os.Stat(path); err == nil {
			if all := auditRecords(t, path); len(all) > 0 && all[len(all)-1].Event == event &&
				all[len(all)-1].Operation == operation {
				return all[len(all)-1]
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s has no %s by %s", path, event, operation)
	return audit.Record{}
}

func signalSelf(t *testing.T, s syscall.Signal) { // the proxy runs in this process
	t.Helper()
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		t.Fatal(err)
	}
}

func TestAuditLog(t *testing.T) {
	listen, admin, path := freePort(t), freePort(t), filepath.Join(t.TempDir(), "audit.log")
	config := writeConfig(t, sink(t).URL, listen, admin, "limits:", "audit: {file: "+path+"}\nlimits:")
	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	if all := auditRecords(t, path); len(all) != 0 {
		t.Errorf("before any use: %+v", all)
	}

	c, bucket, key := client(listen, "appkey", "appsecretappsecret"), "demo", "k"
	put := func() error {
		_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader("x")})
		return err
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}

	r := waitRecord(t, path, "create", "PutObject")
	if r.KMSKeyName != "main" || r.Client != "app" || r.Bucket != bucket || r.Key != key || r.Result != "ok" ||
		r.RequestID == "" ||
		r.KMSKeyVersion != "1" {
		t.Errorf("%+v", r)
	}

	if status, body := adminDo(t, "POST", "http://"+admin+"/admin/purge?key=main", nil); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	if r := waitRecord(t, path, "purge", "POST /admin/purge"); r.KMSKeyName != "main" || *r.Purged != 1 ||
		!strings.HasPrefix(r.Remote, "127.0.0.1:") {
		t.Errorf("%+v", r)
	}

	signalSelf(t, syscall.SIGUSR1)
	if r := waitRecord(t, path, "purge", "SIGUSR1"); r.KMSKeyName != "*" || *r.Purged != 0 {
		t.Errorf("%+v", r)
	}
	if err := os.Rename(path, path+".1"); err != nil { // as logrotate does
		t.Fatal(err)
	}

	signalSelf(t, syscall.SIGHUP)
	if r := waitRecord(
		t, path, "reload", "SIGHUP",
	); r.Detail != "applied: none" {
		t.Errorf("%+v", r)
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}

	if all := auditRecords(t, path); len(all) != 2 {
		t.Errorf("after the rotation: %+v", all)
	}
	s.end(t)
}

// If the log cannot be written, no key is used, a reload changes nothing,
// and a purge succeeds and reports the error.
func TestAuditLogThatIsFull(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	listen, admin := freePort(t), freePort(t)
	config := writeConfig(t, sink(t).URL, listen, admin, "limits:", "audit: {file: /dev/full}\nlimits:")
	s := start(t, "serve", "--config", config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)

	_, err := client(
		listen,
		"appkey",
		"appsecretappsecret",
	).PutObject(
		t.Context(),
		&s3.PutObjectInput{Bucket: new("demo"), Key: new("k"), Body: strings.NewReader("x")},
		func(o *s3.Options) { o.RetryMaxAttempts = 1 },
	)
	if err == nil || !strings.Contains(err.Error(), "StatusCode: 503") || !strings.Contains(err.Error(), "audit log") {
		t.Errorf("PUT: %v, want 503", err)
	}

	metrics := "http://" + admin + "/metrics"
	waitMetric(t, metrics, "cmekproxy_audit_failures_total 1\n")
	if status, body := adminDo(t, "POST", "http://"+admin+"/admin/purge", nil); status != http.StatusInternalServerError ||
		!strings.Contains(string(body), "purged, but") {
		t.Errorf("purge: %d %s", status, body)
	}

	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, append(text, "dek_cache: {ttl: 20s, revocation_probe: 0}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}

	signalSelf(t, syscall.SIGHUP)
	waitMetric(t, metrics, "cmekproxy_audit_failures_total 3\n")
	waitMetric(t, metrics, `cmekproxy_revocation_window_seconds{key="main"} 12`+"\n") // unchanged
	s.end(t)
}

func TestAuditLogThatCannotBeOpened(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "no", "audit.log")
	config := writeConfig(
		t,
		refusing(t),
		freePort(t),
		freePort(t),
		"limits:",
		"audit: {file: "+missing+"}\nlimits:",
	)

	s := start(t, "serve", "--config", config)
	if code := <-s.code; code != 1 || !strings.Contains(s.out.String(), missing) {
		t.Errorf("serve: %d %s", code, s.out.String())
	}

	s = start(t, "check", "--config", config)
	if code := <-s.code; code != 1 || !strings.Contains(s.out.String(), "FAIL  audit log") {
		t.Errorf("check: %d %s", code, s.out.String())
	}
	if err := os.Mkdir(filepath.Dir(missing), 0o700); err != nil {
		t.Fatal(err)
	}

	s = start(t, "check", "--config", config)
	if <-s.code; !strings.Contains(s.out.String(), "ok    audit log") {
		t.Errorf("check: %s", s.out.String())
	}
	if entries, err := os.ReadDir(filepath.Dir(missing)); err != nil || len(entries) != 0 {
		t.Errorf("check has left %v, %v", entries, err)
	}

	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("check has made the log: %v", err)
	}
}

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// sight is what a person sees on the operator's page.
type sight struct {
	Name, Title, State, Stale, Background string
	Notices, Keys, Errors                 []string
	Lines                                 int // of the plots
	Sideways                              int // pixels that the page is too wide
	Complaints                            []string
}

// TestStatusPage looks at the operator's page in headless Chromium while the
// proxy serves, its key is revoked, it drains, and is gone. The page is never
// loaded again. The pictures are beside the logs.
func TestStatusPage(t *testing.T) {
	if !selected("status-page") || os.Getenv("E2E_TARGET") == "store" {
		t.Skip("not selected, or without the proxy")
	}
	t.Parallel()
	s := newStage(t)
	const token = "a-token-of-some-length"
	addSetting(t, s, "admin_token: "+token)

	browser := openPage(t, s.admin+"/", token)
	serving := browser.look("serving", "10 s ago")
	if len(serving.Notices) != 1 || serving.Notices[0] != "Nothing needs attention." || serving.Lines < 3 ||
		!strings.HasPrefix(serving.State, "● Serving for ") || !strings.Contains(strings.Join(serving.Keys, "\n"), "● usable") {
		t.Errorf("serving: %+v", serving)
	}

	s.customer.disable()
	api := newGoSDK(s.endpoint).s3
	key := "refused"
	if _, err := api.PutObject(context.Background(), &s3.PutObjectInput{
		Bucket: &s.bucket, Key: &key, Body: strings.NewReader("x"),
	}); err == nil {
		t.Error("stored without a key")
	}
	revoked := browser.look("revoked", "KMS.DisabledException") // of the request; the key may be seen revoked before
	if revoked.Title[:3] != "(1)" || !strings.Contains(strings.Join(revoked.Keys, "\n"), "■ revoked") ||
		!strings.Contains(strings.Join(revoked.Errors, "\n"), "PutObject KMS.DisabledException") {
		t.Errorf("revoked: %+v", revoked)
	}

	s.customer.enable()
	body := readSlowly(t, s)
	defer body.Close()
	s.customer.must(nil, s.proxy.cmd.Process.Signal(syscall.SIGTERM))
	draining := browser.look("draining", "1 request is left")
	if !strings.HasPrefix(draining.State, "▲ Draining for ") || !strings.HasPrefix(draining.Title, "draining") {
		t.Errorf("draining: %+v", draining)
	}

	s.customer.must(nil, s.proxy.cmd.Process.Kill())
	if gone := browser.look("gone", "No answer since"); gone.Stale == "" || gone.State != browser.last["draining"].State &&
		!strings.HasPrefix(gone.State, "▲ Draining for ") {
		t.Errorf("gone: %+v", gone)
	}
	browser.end()

	dark := browser.last["dark"]
	if dark.Background == serving.Background || dark.Sideways > 0 || serving.Sideways > 0 {
		t.Errorf("on a narrow dark screen: %+v", dark)
	}
}

// addSetting adds a line to the configuration, and reloads it.
func addSetting(t *testing.T, s *stage, line string) {
	t.Helper()
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.config, append(text, line+"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	s.customer.must(nil, s.proxy.cmd.Process.Signal(syscall.SIGHUP))
}

// readSlowly reads the beginning of the large object, with a buffer so small
// that the rest stays in the proxy.
func readSlowly(t *testing.T, s *stage) io.ReadCloser {
	t.Helper()
	key := "big"
	out, err := newGoSDK(s.endpoint).s3.GetObject(context.Background(), &s3.GetObjectInput{Bucket: &s.bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out.Body, make([]byte, mib)); err != nil {
		t.Fatal(err)
	}
	return out.Body
}

// browser is Chromium with the page.
type browser struct {
	t     *testing.T
	cmd   *exec.Cmd
	steps io.WriteCloser
	lines *bufio.Scanner
	last  map[string]sight
}

func openPage(t *testing.T, url, password string) *browser {
	t.Helper()
	pictures := logDir(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "node", filepath.Join("js", "statuspage.mjs"), "/usr/bin/chromium", url, password, pictures)
	cmd.Env, cmd.Stderr = environment(), os.Stderr
	steps, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &browser{t: t, cmd: cmd, steps: steps, lines: bufio.NewScanner(out), last: make(map[string]sight)}
}

// look waits until the page shows a text, and returns what it then shows.
func (b *browser) look(name, text string) sight {
	b.t.Helper()
	fmt.Fprintf(b.steps, "%s\t%s\n", name, text)
	return b.read()
}

func (b *browser) read() (s sight) {
	b.t.Helper()
	if !b.lines.Scan() {
		b.t.Fatalf("the browser has ended: %v, %v", b.lines.Err(), b.cmd.Wait())
	}
	if err := json.Unmarshal(b.lines.Bytes(), &s); err != nil {
		b.t.Fatalf("%v: %s", err, b.lines.Bytes())
	}
	for _, c := range s.Complaints {
		if s.Name != "gone" || !strings.Contains(c, "ERR_CONNECTION_REFUSED") {
			b.t.Errorf("%s: %s", s.Name, c)
		}
	}
	b.last[s.Name] = s
	return s
}

func (b *browser) end() {
	b.t.Helper()
	_ = b.steps.Close()
	for b.lines.Scan() {
		var s sight
		if err := json.Unmarshal(b.lines.Bytes(), &s); err == nil {
			b.last[s.Name] = s
		}
	}
	if err := b.cmd.Wait(); err != nil {
		b.t.Error(err)
	}
}

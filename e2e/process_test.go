package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// startTimeout limits how long each process may take to start and to end.
const startTimeout = 30 * time.Second

// environment returns the environment of child processes: that of the tests
// and extra, without variables that would change a client's default settings
// or endpoint.
func environment(extra ...string) []string {
	var env []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if !meddles(strings.ToUpper(name)) {
			env = append(env, entry)
		}
	}
	return append(append(env, "LC_ALL=C.UTF-8"), extra...)
}

func meddles(name string) bool {
	return slices.Contains([]string{
		"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "NODE_OPTIONS",
		"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "ROOT_ACCESS_KEY", "ROOT_SECRET_KEY",
	}, name) || strings.HasPrefix(name, "AWS_") || strings.HasPrefix(name, "RCLONE_") || strings.HasPrefix(name, "VGW_")
}

// process is a server that runs until the test ends. It logs to a file. If
// the test fails, the end of the file is printed.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string // path
	done chan struct{}
}

func start(t *testing.T, name string, env []string, command string, args ...string) *process {
	t.Helper()
	p := &process{name: name, log: filepath.Join(logDir(t), name+".log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}

	p.cmd = exec.CommandContext(context.Background(), command, args...)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = env, out, out
	// The process has its own group: Ctrl-C ends the clients first, and
	// their servers at the end.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}

	go func() {
		_ = p.cmd.Wait()
		_ = out.Close()
		close(p.done)
	}()
	t.Cleanup(func() { p.stop(t) })
	return p
}

func (p *process) stop(t *testing.T) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(startTimeout):
		t.Errorf("%s did not stop", p.name)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	if t.Failed() {
		t.Logf("the end of the log of %s:\n%s", p.name, tail(p.log, 40))
	}
}

// waitFor waits until a URL returns a status below 500.
func (p *process) waitFor(t *testing.T, url string) {
	t.Helper()
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		select {
		case <-p.done:
			t.Fatalf("%s has ended", p.name)
		default:
		}
		resp, err := http.Get(url)
		if err != nil {
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode < 500 {
			return
		}
	}
	t.Fatalf("%s does not answer", p.name)
}

// firstLine waits for the first line that a process prints.
func (p *process) firstLine(t *testing.T) string {
	t.Helper()
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		data, err := os.ReadFile(p.log)
		if err != nil {
			t.Fatal(err)
		}
		if line, _, ok := strings.Cut(string(data), "\n"); ok {
			return line
		}
	}
	t.Fatalf("%s prints nothing", p.name)
	return ""
}

func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", nextPort.Add(1))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

// nextPort is the next port that freeAddress tries. Ports below 32768 are
// not used for outgoing connections, so no client can take a port that was
// free a moment ago.
var nextPort = func() *atomic.Int64 {
	var next atomic.Int64
	next.Store(int64(12_000 + os.Getpid()*97%18_000))
	return &next
}()

// logDir is the directory for the logs of a test.
func logDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("E2E_LOGS")
	if dir == "" {
		return t.TempDir()
	}
	test, _, _ := strings.Cut(t.Name(), "/")
	dir = filepath.Join(dir, test)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func tail(path string, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	var last []string
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		if last = append(last, scanner.Text()); len(last) > lines {
			last = last[1:]
		}
	}
	return strings.Join(last, "\n")
}

// runTool runs a client to its end and returns its standard output. An error
// includes the standard error. A warning about an ETag or a checksum counts
// as a failure.
func runTool(env []string, stdin []byte, command string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Env = env
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if stdin != nil {
		cmd.Stdin = strings.NewReader(string(stdin))
	}
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(command), strings.Join(args, " "), err,
			strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), complaint(stderr.String())
}

var complaints = regexp.MustCompile(`(?im)^.*\b(?:e-?tags?|md5|checksums?|hash(?:es)? differ|corrupt(?:ed)?|mismatch(?:es)?)\b.*$`)

// complaint returns an error if a client that succeeded warned about the
// integrity of its copy.
func complaint(stderr string) error {
	if line := complaints.FindString(stderr); line != "" {
		return fmt.Errorf("the client complains: %s", line)
	}
	return nil
}

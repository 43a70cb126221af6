//go:build !nodev

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// relay passes requests on to the store, until fault says what to do instead.
type relay struct {
	url   string
	pass  http.Handler // to the store
	fault atomic.Pointer[func(w http.ResponseWriter, r *http.Request) (handled bool)]
}

func (m *move) relay() *relay {
	m.t.Helper()
	target, err := url.Parse(m.store)
	if err != nil {
		m.t.Fatal(err)
	}
	pass := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // it is signed
	}}
	y := &relay{pass: pass}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault := y.fault.Load(); fault == nil || !(*fault)(w, r) {
			pass.ServeHTTP(w, r)
		}
	}))
	m.t.Cleanup(server.Close)
	y.url = server.URL
	return y
}

// breaks makes the store break all connections for which it is true.
func (y *relay) breaks(when func(*http.Request) bool) {
	y.fault.Store(new(func(w http.ResponseWriter, r *http.Request) bool {
		if !when(r) {
			return false
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conn.Close()
		}
		return true
	}))
}

// rows returns the lines of JSON on stdout.
func rows(t *testing.T, stdout string) (list []map[string]any) {
	t.Helper()
	for line := range strings.Lines(stdout) {
		var row map[string]any
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		list = append(list, row)
	}
	return list
}

// both runs a command to its end, and returns stdout and stderr.
func (m *move) split(code int, args ...string) (stdout, stderr string) {
	m.t.Helper()
	var out, errors output
	if got := run(m.t.Context(), args, &out, &errors); got != code {
		m.t.Fatalf("%q: exit code %d, not %d:\n%s%s", args, got, code, out.String(), errors.String())
	}
	return out.String(), errors.String()
}

// continued returns the arguments of the command line that stderr says.
func continued(t *testing.T, stderr string) []string {
	t.Helper()
	_, line, found := strings.Cut(stderr, "\nto continue: cmekproxy ")
	if !found {
		t.Fatalf("nothing says how to continue:\n%s", stderr)
	}
	out, err := exec.Command("bash", "-c", `printf '%s\n' `+strings.TrimSpace(line)).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// process starts the program with separate stdout and stderr.
func process(t *testing.T, stdin io.Reader, args ...string) (cmd *exec.Cmd, stdout, stderr *output) {
	t.Helper()
	stdout, stderr = &output{}, &output{}
	cmd = exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainCommand$")
	cmd.Env = append(os.Environ(), commandEnv+"="+strings.Join(args, "\n"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, stdout, stderr
}

// waitText waits until a process has printed something.
func waitText(t *testing.T, out *output, text string) {
	t.Helper()
	for range 3000 {
		if strings.Contains(out.String(), text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never printed %q:\n%s", text, out.String())
}

// A signal ends a run with the objects in hand done. Its last line continues
// it: both runs together do each object once.
func TestSignalStopsARun(t *testing.T) {
	m := newMove(t)
	for i := range 40 {
		m.put(fmt.Sprintf("it's %02d", i), text(uint64(i), 100))
	}

	for _, row := range []struct {
		name   string
		signal os.Signal
		code   int
		args   []string
	}{
		{"SIGINT", os.Interrupt, 130, []string{"rewrap", "--to", "new", "--rate", "100"}},
		{"SIGTERM", syscall.SIGTERM, 143, []string{"rewrap", "--to", "old", "--rate", "100"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			args := append(row.args, "--config", m.both, "--format", "json", "--parallel", "2", "s3://bucket/it")
			cmd, stdout, stderr := process(t, nil, args...)
			waitText(t, stdout, "it's 05")
			send(t, cmd, row.signal)
			_ = cmd.Wait() // the exit code is checked
			if got := cmd.ProcessState.ExitCode(); got != row.code {
				t.Fatalf("exit code %d, want %d:\n%s", got, row.code, stderr)
			}
			if !strings.Contains(stderr.String(), "stopped by "+row.name) {
				t.Errorf("stderr:\n%s", stderr)
			}

			var done []string
			first := rows(t, stdout.String())
			summary := first[len(first)-1]
			rest, _ := m.split(0, continued(t, stderr.String())...)
			second := rows(t, rest)
			for _, r := range append(first, second...) {
				if r["type"] == "object" {
					done = append(done, fmt.Sprint(r["key"], " ", r["outcome"]))
				}
			}
			if len(done) != 40 || len(slices.Compact(slices.Sorted(slices.Values(done)))) != 40 {
				t.Errorf("%d objects: %q", len(done), done)
			}
			if summary["complete"] != false || summary["error"] != "stopped by "+row.name || summary["failed"] != 0.0 {
				t.Errorf("%v", summary)
			}
			if end := second[len(second)-1]; end["complete"] != true || end["current"] != 0.0 {
				t.Errorf("the second run: %v", end)
			}
		})
	}
	m.readable(m.app)
}

// A second signal ends the process at once, whatever is in hand, also in the
// background job of a shell.
func TestSecondSignalEndsARun(t *testing.T) {
	ignoreInterrupt(t)
	m := newMove(t)
	m.put("key", text(1, 100))
	y, hung := m.relay(), make(chan struct{}, 1)
	y.fault.Store(new(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || isProbe(r) {
			return false
		}
		hung <- struct{}{}
		_, _ = io.Copy(io.Discard, r.Body) // notices the end of the connection
		<-r.Context().Done()
		return true
	}))
	config := m.config("hangs.yaml", y.url, "old", "old", "new")
	cmd, _, stderr := process(t, nil, "rewrap", "--config", config, "--to", "new", "s3://bucket")
	<-hung
	send(t, cmd, syscall.SIGTERM)
	waitText(t, stderr, "a second signal ends at once")
	send(t, cmd, os.Interrupt)
	_ = cmd.Wait() // the exit code is checked
	if got := cmd.ProcessState.ExitCode(); got != 130 || strings.Contains(stderr.String(), "to continue") {
		t.Errorf("exit code %d:\n%s", got, stderr)
	}
	m.under("old")
}

// A store that dies is given up, with the reason and the line that continues
// the run. No object counts as failed for it.
func TestStoreThatDies(t *testing.T) {
	m := newMove(t)
	for i := range 30 {
		m.put(fmt.Sprintf("k%02d", i), text(uint64(i), 100))
	}
	y := m.relay()
	config := m.config("dies.yaml", y.url, "old", "old", "new")

	var requests atomic.Int64
	last := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/bucket/k") && requests.Add(1) > 20 }
	all := func(r *http.Request) bool { return requests.Load() > 20 || last(r) }
	hangs := func(_ http.ResponseWriter, r *http.Request) bool {
		if !all(r) {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body) // notices the end of the connection
		<-r.Context().Done()
		return true
	}

	for _, row := range []struct {
		name string
		hang bool
		args []string
	}{
		{"verify", false, []string{"verify"}},
		{"inventory", false, []string{"inventory"}},
		{"rewrap", false, []string{"rewrap", "--to", "new"}},
		{"rewrap with a state", true, []string{"rewrap", "--to", "old", "--state", filepath.Join(m.dir, "state")}},
	} {
		t.Run(row.name, func(t *testing.T) {
			requests.Store(0)
			if y.breaks(all); row.hang {
				y.fault.Store(&hangs)
			}
			args := append(row.args, "--config", config, "--give-up", "2s", "--parallel", "2", "--format", "json", "s3://bucket")
			stdout, stderr := m.split(1, args...)
			for _, want := range []string{"the store at " + y.url, "has not answered for", "check"} {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr has no %q:\n%s", want, stderr)
				}
			}

			list := rows(t, stdout)
			end := list[len(list)-1]
			if end["complete"] != false || !strings.Contains(fmt.Sprint(end["error"]), "has not answered") {
				t.Errorf("%v", end)
			}
			for _, r := range list {
				if r["outcome"] == "failed" || r["kind"] == "error" || r["fault"] != nil {
					t.Errorf("%v", r)
				}
			}

			y.fault.Store(nil)
			if again, _ := m.split(0, continued(t, stderr)...); !strings.Contains(again, `"complete":true`) {
				t.Errorf("the second run:\n%s", again)
			}
		})
	}
	m.under("old")
	m.readable(m.app)
}

// brokenAnswer is an answer that stops after some bytes of its body.
type brokenAnswer struct {
	http.ResponseWriter
	left int
	stop func()
}

func (b *brokenAnswer) Write(p []byte) (int, error) {
	n, err := b.ResponseWriter.Write(p[:min(len(p), b.left)])
	if b.left -= n; b.left == 0 {
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		b.stop()
	}
	return n, err
}

// decrypt waits for a store that comes back, and goes on where it was. A
// store that dies is given up, with the reason and the line that continues.
func TestDecryptOfAStoreThatDies(t *testing.T) {
	m := newMove(t)
	body := text(1, 1_000_000)
	m.put("key", body)
	y := m.relay()
	config := m.config("dies.yaml", y.url, "old", "old", "new")

	// The first n answers end after 300 kB. Then the store is as before, or
	// hangs.
	var reads atomic.Int64
	breaks := func(n int64, hangs bool) {
		reads.Store(0)
		y.fault.Store(new(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet && r.URL.Path == "/bucket/key" && reads.Add(1) <= n {
				y.pass.ServeHTTP(&brokenAnswer{w, 300_000, func() { panic(http.ErrAbortHandler) }}, r)
				return true
			}
			if reads.Load() <= n || !hangs {
				return false
			}
			<-r.Context().Done()
			return true
		}))
	}

	file := filepath.Join(m.dir, "file")
	args := []string{"decrypt", "--config", config, "--give-up", "1s", "s3://bucket/key", "-o"}
	t.Run("connections that break", func(t *testing.T) {
		breaks(2, false)
		_, stderr := m.split(0, append(args, file)...)
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, body) || strings.Count(stderr, "continuing at byte") != 2 {
			t.Errorf("%d bytes, %v:\n%s", len(got), err, stderr)
		}
	})
	t.Run("to standard output", func(t *testing.T) {
		breaks(2, false)
		if stdout, _ := m.split(0, append(args, "-")...); stdout != string(body) {
			t.Errorf("%d bytes", len(stdout))
		}
	})
	t.Run("a store that hangs", func(t *testing.T) {
		breaks(1, true)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		_, stderr := m.split(1, append(args, file)...)
		if !strings.Contains(stderr, "the store at "+y.url+" has not answered for ") {
			t.Errorf("stderr:\n%s", stderr)
		}

		y.fault.Store(nil)
		_, stderr = m.split(0, continued(t, stderr)...)
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, body) || !strings.Contains(stderr, "continuing at byte ") {
			t.Errorf("%d bytes, %v:\n%s", len(got), err, stderr)
		}
	})
	t.Run("no such object", func(t *testing.T) {
		y.fault.Store(nil)
		if _, stderr := m.split(1, "decrypt", "--config", config, "s3://bucket/no", "-o", file); !strings.Contains(stderr, "404") {
			t.Errorf("stderr:\n%s", stderr)
		}
	})
}

// An object that cannot be read does not end the run, although the store
// breaks the connection each time and nothing else is left to be done.
func TestSingleObjectThatBreaks(t *testing.T) {
	m := newMove(t)
	for _, key := range []string{"a", "b", "z"} {
		m.put(key, text(1, 100))
	}
	y := m.relay()
	y.breaks(func(r *http.Request) bool { return r.URL.Path == "/bucket/z" })

	args := []string{"inventory", "--config", m.config("breaks.yaml", y.url, "old", "old", "new"), "--give-up", "2s", "--format", "json", "s3://bucket"}
	stdout, stderr := m.split(1, args...)
	list := rows(t, stdout)
	if end := list[len(list)-1]; end["complete"] != true || end["errors"] != 1.0 || end["objects"] != 2.0 {
		t.Errorf("%v", end)
	}
	if !strings.Contains(stderr, "ERROR  z: ") || strings.Contains(stderr, "to continue") {
		t.Errorf("%s", stderr)
	}
}

// A KMS that cannot be reached is given up too. That is no refusal: no object
// counts as failed. One that limits the rate of calls is waited for.
func TestKMSThatDies(t *testing.T) {
	m := newAWSMove(t)
	m.put("key", text(1, 100))
	for _, row := range []struct {
		name     string
		faults   kmstest.Faults
		commands [][]string
	}{
		{"connections break", kmstest.Faults{Drop: true}, [][]string{
			{"verify", "--format", "json"}, {"decrypt", "-o", filepath.Join(m.dir, "file")},
		}},
		{"errors of the KMS", kmstest.Faults{Fail: "KMSInternalException"}, [][]string{{"rewrap", "--to", "new"}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			m.kms.SetFaults(row.faults)
			t.Cleanup(func() { m.kms.SetFaults(kmstest.Faults{}) })
			for _, command := range row.commands {
				t.Run(command[0], func(t *testing.T) {
					t.Parallel()
					target := "s3://bucket"
					if command[0] == "decrypt" {
						target += "/key"
					}
					stdout, stderr := m.split(1, append(command, "--config", m.both, "--give-up", "1s", target)...)
					if !strings.Contains(stderr, "the KMS has not answered for") || strings.Contains(stdout, `"key"`) {
						t.Errorf("%s%s", stdout, stderr)
					}
				})
			}
		})
	}
}

func TestNothingBegins(t *testing.T) {
	m := newMove(t)
	m.put("key", text(1, 100))
	for _, command := range []string{"verify", "inventory", "rewrap", "encrypt"} {
		for _, row := range []struct {
			name, target string
			args         []string
			code         int
			want         string
		}{
			{"an empty prefix", "s3://bucket/no/", nil, 0, "no object begins with s3://bucket/no/\n"},
			{"the end", "s3://bucket/k", []string{"--after", "key"}, 0, `no object begins with s3://bucket/k and comes after "key"`},
			{"no bucket", "s3://missing", nil, 1, "404 NoSuchBucket"},
		} {
			t.Run(command+", "+row.name, func(t *testing.T) {
				args := append([]string{command, "--config", m.both, "--format", "json", row.target}, row.args...)
				stdout, stderr := m.split(row.code, args...)
				if !strings.Contains(stderr, row.want) || strings.Contains(stderr, "to continue") {
					t.Errorf("stderr: %s", stderr)
				}
				for _, r := range rows(t, stdout) {
					if r["complete"] != (row.code == 0) {
						t.Errorf("%v", r)
					}
				}
			})
		}
	}

	for name, row := range map[string]struct {
		args []string
		want string
	}{
		"a position twice":     {[]string{"verify", "--after", "a", "--state", "f"}, "--state has the position"},
		"negative patience":    {[]string{"inventory", "--give-up", "-1s"}, "--give-up is negative"},
		"decrypt as well":      {[]string{"decrypt", "--give-up", "-1s"}, "--give-up is negative"},
		"a summary in csv":     {[]string{"inventory", "--summary", "--format", "csv"}, "choose table or json"},
		"csv of rewrap":        {[]string{"rewrap", "--format", "csv"}, "must be text or json"},
		"csv of encrypt":       {[]string{"encrypt", "--format", "csv"}, "must be text or json"},
		"two things on stdout": {[]string{"decrypt", "--format", "json", "-o", "-"}, "give --output FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, stderr := m.split(2, append(row.args, "--config", m.both, "s3://bucket/key")...); !strings.Contains(stderr, row.want) {
				t.Errorf("%s", stderr)
			}
		})
	}
}

func TestSummaryOfTheInventory(t *testing.T) {
	m := newMove(t)
	m.put("a", text(1, 1000))
	m.put("b", text(2, 500))
	m.putRaw("plain", nil, []byte("12345"))
	m.putRaw("half", map[string]string{"cmek-v": "1"}, []byte("12345"))

	stdout, stderr := m.split(1, "inventory", "--config", m.both, "--summary", "--format", "json", "s3://bucket")
	list := rows(t, stdout)
	if len(list) != 3 || list[0]["type"] != "summary" || list[1]["id"] != "plaintext" {
		t.Fatalf("%s", stdout)
	}
	got, err := json.Marshal(list[2])
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"bucket":"bucket","bytes":1505,"complete":true,"errors":1,"formats":[` +
		`{"bytes":0,"format":1,"objects":0},{"bytes":1500,"format":2,"objects":2}],` +
		`"objects":3,"plaintext":{"bytes":5,"objects":1},"type":"total","versions":false}`
	if string(got) != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if !strings.Contains(stderr, "ERROR  half: ") {
		t.Errorf("stderr: %s", stderr)
	}

	stdout, _ = m.split(1, "inventory", "--config", m.both, "--summary", "s3://bucket")
	for _, want := range []string{
		"         2              1500  in format 2\n", "         1                 5  plaintext\n",
		"         3              1505  in all below s3://bucket/\n", "         1  objects with an error\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q:\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "OBJECT\n") || strings.HasPrefix(stdout, "\n") {
		t.Errorf("with rows:\n%s", stdout)
	}
}

// What encrypt, rewrap and decrypt print in JSON. Everything for people is on
// stderr.
func TestLongCommandsInJSON(t *testing.T) {
	m := newMove(t)
	m.put("sealed", text(1, 1000))
	m.putRaw("plain", nil, []byte("12345"))
	m.putRaw("half", map[string]string{"cmek-v": "1"}, []byte("12345"))

	stdout, stderr := m.split(1, "encrypt", "--config", m.both, "--format", "json", "s3://bucket")
	const encrypted = `{"type":"object","key":"plain","outcome":"done","size":5}` + "\n" +
		`{"type":"summary","command":"encrypt","dry_run":false,"done":1,"bytes":5,"multipart":0,"current":1,` +
		`"plaintext":0,"gone":0,"customer_keys":0,"failed":1,"complete":true}` + "\n"
	if !strings.HasPrefix(stdout, `{"type":"object","key":"half","outcome":"failed","size":0,"error":"`) ||
		!strings.HasSuffix(stdout, encrypted) || !strings.Contains(stderr, "1 objects failed") {
		t.Errorf("encrypt:\n%s%s", stdout, stderr)
	}

	stdout, _ = m.split(0, "rewrap", "--config", m.both, "--format", "json", "--to", "new", "--dry-run", "s3://bucket/s")
	if want := `{"type":"object","key":"sealed","outcome":"done","size":1000}` + "\n" +
		`{"type":"summary","command":"rewrap","dry_run":true,"done":1,"bytes":1000,"multipart":0,"current":0,` +
		`"plaintext":0,"gone":0,"customer_keys":0,"failed":0,"complete":true}` + "\n"; stdout != want {
		t.Errorf("rewrap:\n%s\nwant %s", stdout, want)
	}

	file := filepath.Join(m.dir, "file")
	stdout, stderr = m.split(0, "decrypt", "--config", m.both, "--format", "json", "-o", file, "s3://bucket/sealed")
	want := fmt.Sprintf(`{"type":"object","bucket":"bucket","key":"sealed","file":%q,"size":1000}`+"\n", file)
	if stdout != want || stderr != "" {
		t.Errorf("decrypt: %s%s\nwant %s", stdout, stderr, want)
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, text(1, 1000)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// An object under a key that no rule for it names is no fault of the store.
func TestVerifySaysThatTheRulesRefuse(t *testing.T) {
	m := newMove(t)
	m.put("key", text(1, 100))
	config := m.config("other.yaml", m.store, "new", "old", "new")
	dropAllowed, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	dropAllowed = bytes.Replace(dropAllowed, []byte(`, allowed_keys: ["*"]`), nil, 1)
	if err := os.WriteFile(config, dropAllowed, 0o600); err != nil {
		t.Fatal(err)
	}
	faults, _ := m.verified(config, 1)
	if faults["key"] != "key-rule old" {
		t.Errorf("%v", faults)
	}
}

// Ctrl-C ends a command that reads its input, with the usual exit code.
func TestSignalWhileReading(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	cmd, _, stderr := process(t, in, "config", "validate", "-")
	if _, err := out.WriteString("listen: "); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the command reads", func() bool {
		unread, err := unix.IoctlGetInt(int(in.Fd()), unix.TIOCINQ)
		return err == nil && unread == 0
	})
	send(t, cmd, os.Interrupt)
	_ = cmd.Wait() // the exit code is checked
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("%v: %s", cmd.ProcessState, stderr)
	}
}

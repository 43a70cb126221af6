package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/audit"
)

// clock is a clock set by the test.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time { return c.now }

func open(t testing.TB, cfg audit.Config) *audit.Log {
	t.Helper()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}

	l, err := audit.New(cfg)
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})

	return l
}

func write(t testing.TB, l *audit.Log, key string) {
	t.Helper()
	if err := l.Write(audit.Record{Event: "open", Result: audit.OK, Key: key}); err != nil {
		t.Fatal(err)
	}
}

// keys returns the object keys of the records in a file in order, and the
// number of other lines.
func keys(t testing.TB, path string) (keys []string, others int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return keysIn(string(text))
}

func keysIn(text string) (keys []string, others int) {
	for line := range strings.Lines(text) {
		var r audit.Record
		if !strings.HasSuffix(line, "\n") || json.Unmarshal([]byte(line), &r) != nil {
			others++
			continue
		}
		keys = append(keys, r.Key)
	}
	return keys, others
}

func wantKeys(t testing.TB, path string, others int, want ...string) {
	t.Helper()
	if got, o := keys(t, path); fmt.Sprint(got) != fmt.Sprint(want) || o != others {
		t.Errorf("%s has %v and %d other lines, want %v and %d", filepath.Base(path), got, o, want, others)
	}
}

func TestLineIsGolden(t *testing.T) {
	var out bytes.Buffer
	l := open(t, audit.Config{Out: &out, Now: newClock().Now})
	n := 3
	for _, r := range []audit.Record{
		{
			Event: "open", Result: audit.OK, KMSKeyName: "default", KMSKey: "arn:k", KMSKeyVersion: "2",
			Source: "kms", KMSRequestID: "1-2",
			Client: "app", Session: "ASIA1", Remote: "10.0.0.1:1", RequestID: "ab", Operation: "GetObject",
			Bucket: "b", Key: "a<b>&\n\"\u2028é",
		},
		{Event: "purge", Result: "not audited", Purged: &n, Detail: "x"},
	} {
		if err := l.Write(r); err != nil {
			t.Fatal(err)
		}
	}

	want := `{"time":"2026-11-23T10:00:00Z","event":"open","result":"ok","kms_key_name":"default",` +
		`"kms_key":"arn:k","kms_key_version":"2",` +
		`"source":"kms","kms_request_id":"1-2","client":"app","session":"ASIA1","remote":"10.0.0.1:1",` +
		`"request_id":"ab","operation":"GetObject","bucket":"b","key":"a<b>&\n\"\u2028é"}` + "\n" +
		`{"time":"2026-11-23T10:00:00Z","event":"purge","result":"not audited","purged":3,"detail":"x"}` + "\n"
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}
}

// Lines of many writers, as in two processes, are complete, and each is
// written once.
func TestConcurrentWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	logs := []*audit.Log{open(t, audit.Config{File: path}), open(t, audit.Config{File: path})}
	var wg sync.WaitGroup

	for w := range 8 {
		wg.Go(func() {
			for i := range 200 {
				write(t, logs[w%2], fmt.Sprintf("%d-%d-%s", w, i, strings.Repeat("x", i)))
			}
		})
	}

	wg.Wait()
	got, others := keys(t, path)
	seen := map[string]bool{}

	for _, key := range got {
		seen[key] = true
	}

	if len(got) != 1600 || len(seen) != 1600 || others != 0 {
		t.Errorf("%d records, %d different ones, %d other lines", len(got), len(seen), others)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// failing accepts room more bytes and then fails like a full disk.
type failing struct {
	bytes.Buffer
	room  int
	short bool // without an error, which no writer may do
}

func (f *failing) Write(p []byte) (int, error) {
	n := min(len(p), f.room)
	f.room -= n
	f.Buffer.Write(p[:n])
	if n < len(p) && !f.short {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// Wherever a line is truncated, the writer gets an error, and the next line
// is complete.
func TestTornLines(t *testing.T) {
	var whole bytes.Buffer
	write(t, open(t, audit.Config{Out: &whole, Now: newClock().Now}), "torn")

	for _, short := range []bool{false, true} {
		for cut := range whole.Len() {
			out := &failing{room: 1 << 20, short: short}
			l := open(t, audit.Config{Out: out, Now: newClock().Now})
			write(t, l, "before")
			want := syscall.ENOSPC.Error()

			if short {
				want = io.ErrShortWrite.Error()
			}

			for _, room := range []int{cut, 0, 0} { // the disk remains full
				out.room = room
				if err := l.Write(audit.Record{Event: "open", Result: audit.OK, Key: "torn"}); err == nil ||
					!strings.Contains(err.Error(), want) {
					t.Fatalf("cut at %d: %v, want %s", cut, err, want)
				}
			}

			out.room = 1 << 20
			write(t, l, "after")
			write(t, l, "later")
			got, others := keysIn(out.String())
			fragments := 1

			if cut == 0 {
				fragments = 0
			}
			if cut == whole.Len()-1 { // only the newline is missing: the record exists for a use that was refused
				if len(got) != 4 {
					t.Errorf("cut at %d: %v", cut, got)
				}
			} else if fmt.Sprint(got) != "[before after later]" || others != fragments {
				t.Errorf("cut at %d: %v and %d other lines", cut, got, others)
			}
		}
	}
}

func TestDevFull(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	l := open(t, audit.Config{File: "/dev/full", MaxSize: 1})
	for range 3 {
		if err := l.Write(audit.Record{Event: "open"}); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%v, want no space left on device", err)
		}
	}
}

// A process that crashed during a write has left a partial line.
func TestOpensAfterATornLine(t *testing.T) {
	for _, row := range []struct {
		name, text string
		others     int
	}{
		{"empty", "", 0},
		{"whole", `{"key":"old"}` + "\n", 0},
		{"torn", `{"key":"old"}` + "\n" + `{"key":"o`, 1},
	} {
		path := filepath.Join(t.TempDir(), "audit.log")
		if err := os.WriteFile(path, []byte(row.text), 0o600); err != nil {
			t.Fatal(err)
		}

		write(t, open(t, audit.Config{File: path}), "new")
		want := []string{"old", "new"}

		if row.text == "" {
			want = want[1:]
		}
		wantKeys(t, path, row.others, want...)
	}
}

func TestConfigsThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	for name, cfg := range map[string]audit.Config{
		"nowhere to go":        {Now: time.Now},
		"two places":           {File: filepath.Join(dir, "a"), Out: io.Discard, Now: time.Now},
		"no clock":             {File: filepath.Join(dir, "b")},
		"a directory":          {File: dir, Now: time.Now},
		"no directory":         {File: filepath.Join(dir, "no", "a"), Now: time.Now},
		"a file for directory": {File: "/dev/null/a", Now: time.Now},
	} {
		if _, err := audit.New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestClosed(t *testing.T) {
	for _, cfg := range []audit.Config{{Out: io.Discard}, {File: filepath.Join(t.TempDir(), "audit.log")}} {
		l := open(t, cfg)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.Reopen(), l.Write(audit.Record{})); !errors.Is(err, audit.ErrClosed) {
			t.Errorf("%v", err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	record := audit.Record{
		Event: "open", Result: audit.OK, KMSKeyName: "default",
		KMSKey: "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
		Source: "cache", Client: "app", Remote: "10.0.0.1:43210", RequestID: "0123456789abcdef",
		Operation: "GetObject", Bucket: "photos", Key: "2026/11/23/picture.jpg",
	}

	for name, cfg := range map[string]audit.Config{
		"discard": {Out: io.Discard},
		"file":    {File: filepath.Join(b.TempDir(), "audit.log"), MaxSize: 100 << 20, MaxFiles: 1},
	} {
		b.Run(name, func(b *testing.B) {
			l := open(b, cfg)
			b.ReportAllocs()

			for b.Loop() {
				if err := l.Write(record); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

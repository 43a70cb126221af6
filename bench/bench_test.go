package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
)

// TestMain lets the test program be the origin, the pass-through and the
// KMS, as the bench itself is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestSmoke runs all parts of the bench with tiny loads. It looks for
// failures, not at figures.
func TestSmoke(t *testing.T) {
	o := options{
		proxy: buildProxy(t), length: 10 * time.Millisecond, rounds: 2, clients: 2,
		memory: memoryLoad{requests: 5, idle: 5, transfer: 3, slow: 3, slowFor: time.Millisecond, size: 1 << 20},
		kms:    kmsLoad{rounds: 1, length: 10 * time.Millisecond, objects: 5},
		overload: overloadLoad{
			clients: 2, capacity: 10 * time.Millisecond, factors: []float64{2},
			length: 20 * time.Millisecond, recovery: 20 * time.Millisecond,
		},
	}

	t.Run("cells", func(t *testing.T) {
		table := output(t, func(w *bytes.Buffer) error { return measureCells(t.Context(), o, tinyCells(), w) })
		for _, c := range cells {
			line := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(c.name) + ` \|.*(µs|s/GiB) \| [0-9.]+ / [0-9.]+ \|`)
			if c.goal.of.target == nginxName && !hasNginx() {
				line = regexp.MustCompile(regexp.QuoteMeta(c.name) + ` .*not measured`)
			}
			if !line.MatchString(table) {
				t.Errorf("no line for %s with costs and ratios", c.name)
			}
		}
	})
	t.Run("memory", func(t *testing.T) {
		table := output(t, func(w *bytes.Buffer) error { return measureMemory(t.Context(), o, w) })
		if strings.Contains(table, "?") || strings.Contains(table, "not measured") || !strings.Contains(table, "goal") {
			t.Error("something was not measured")
		}
	})
	t.Run("overload", func(t *testing.T) {
		table := output(t, func(w *bytes.Buffer) error { return measureOverload(t.Context(), o, w) })
		if !strings.Contains(table, "| PUT 4 KiB, 2.00 × the capacity of") {
			t.Error("PUTs were not measured")
		}
	})
	t.Run("kms", func(t *testing.T) {
		table := output(t, func(w *bytes.Buffer) error { return measureKMS(t.Context(), o, w) })
		for _, want := range []string{"each object | 5 and 5 |", "` | 1 and 1 |"} {
			if !strings.Contains(table, want) {
				t.Errorf("no %q: each object needs a call, and objects that share a data key need one", want)
			}
		}
	})
}

// TestOverloadCounts: refused requests and failed ones are not goodput.
func TestOverloadCounts(t *testing.T) {
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch n.Add(1) % 4 {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer server.Close()
	tgt := testTarget("some", server)
	r, err := tgt.sign(t.Context(), tgt.plain, message{method: http.MethodGet, path: "/some/key"})
	if err != nil {
		t.Fatal(err)
	}

	a := newArrivals(tgt.plain, []*request{r})
	a.run(t.Context(), 1000, 100*time.Millisecond, func() {})
	a.stop()
	got := a.take()
	if got.refused == 0 || got.failed == 0 || len(got.served) == 0 || len(got.served) < got.refused {
		t.Errorf("%d served, %d refused, %d failed", len(got.served), got.refused, got.failed)
	}
}

// TestFailuresAreReported checks that an unusable target fails the run, and
// that the rest is measured all the same.
func TestFailuresAreReported(t *testing.T) {
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "out of order", http.StatusServiceUnavailable)
	}))
	defer refusing.Close()
	good := httptest.NewServer(newStore())
	defer good.Close()

	l := &lab{o: options{rounds: 1, clients: 1, length: time.Millisecond}, targets: []*target{
		testTarget(oursName, refusing), testTarget(plainName, good),
	}}
	all, err := compare(t.Context(), l, cells[:1])
	if err == nil || !strings.Contains(err.Error(), "GET 4 KiB at cmekproxy") ||
		!strings.Contains(err.Error(), "out of order") {
		t.Errorf("the error is %v", err)
	}
	table := output(t, func(w *bytes.Buffer) error { all.printCosts(w); return nil })
	if !strings.Contains(table, "µs") || !strings.Contains(table, "not measured") {
		t.Error("the pass-through has no cost, or there is a verdict without a measurement")
	}
}

func TestShortBodyIsAnError(t *testing.T) {
	lying := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("short"))
	}))
	defer lying.Close()
	tgt := testTarget("lying", lying)
	tgt.prepared[cells[0].path(tgt, 0)] = true
	if _, err := cells[0].measure(t.Context(), tgt, 1, time.Millisecond); err == nil {
		t.Error("a GET of 4 KiB got 5 bytes and was counted")
	}
}

func TestVerdict(t *testing.T) {
	for _, row := range []struct {
		name         string
		best, median float64
		want         string
	}{
		{"below", 1.0, 1.1, "**reached**"},
		{"equal", 1.0, 1.2, "**reached**"},
		{"best only", 1.1, 1.5, "**not**: +25 % in the median, reached in the best round"},
		{"above", 1.5, 1.8, "**not**: +50 % in the median, +25 % in the best round"},
		{"just above", 1.2, 1.2024, "**not**: +0.20 % in the median, reached in the best round"},
		{"nothing", math.NaN(), math.NaN(), "not measured"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := verdict(row.best, row.median, 1.2); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

// TestRatiosAreOfOneRound checks that a ratio never mixes rounds, and that
// the passes are added to the reference.
func TestRatiosAreOfOneRound(t *testing.T) {
	c := cell{
		name: "GET", method: http.MethodGet, size: 1 << 30,
		goal: goal{1, reference{target: nginxName, plus: passes{aes: true}}},
	}
	all := &comparison{cells: []cell{c}}
	seconds := func(n float64) sample {
		return sample{cpu: time.Duration(n * 1e9), bytes: 1 << 30, latencies: make([]time.Duration, 1)}
	}
	for _, one := range []struct{ nginx, ours float64 }{{1, 4}, {3, 16}, {7, 8}} {
		all.rounds = append(all.rounds, round{passes: passCosts{open: 1, seal: 100}, samples: map[sampleName]sample{
			{"GET", nginxName}: seconds(one.nginx), {"GET", oursName}: seconds(one.ours),
		}})
	}

	ratios := all.ratios(c)
	if fmt.Sprint(ratios) != "[2 4 1]" || best(ratios) != 1 || median(ratios) != 2 {
		t.Errorf("ratios %v, best %v, median %v", ratios, best(ratios), median(ratios))
	}
}

func TestSelectCells(t *testing.T) {
	var names []string
	for _, c := range selectCells(regexp.MustCompile("CRC32")) {
		names = append(names, c.name)
	}
	if got := strings.Join(names, "; "); got != "PUT 1 MiB; PUT 1 MiB, CRC32 trailer" {
		t.Errorf("selected %s: a cell comes with the one that it is compared with", got)
	}
	if got := selectCells(regexp.MustCompile("^memory$")); len(got) > 0 {
		t.Errorf("selected %d cells", len(got))
	}
}

func TestPatternThatMatchesNothing(t *testing.T) {
	err := measure(t.Context(), options{cells: regexp.MustCompile("PATCH")}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "PATCH") {
		t.Errorf("the error is %v", err)
	}
}

func TestFlags(t *testing.T) {
	for name, args := range map[string][]string{
		"no rounds":                {"-rounds", "0"},
		"a bad pattern":            {"-cells", "("},
		"an argument":              {"-short", "extra"},
		"a peer without a command": {"-peer", "rival=127.0.0.1:1"},
		"a peer without a name":    {"-peer", "127.0.0.1:1", "-peer-command", "true"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parse(args); err == nil {
				t.Errorf("%q was accepted", args)
			}
		})
	}
}

// output runs a part of the bench and returns what it prints.
func output(t *testing.T, part func(w *bytes.Buffer) error) string {
	t.Helper()
	var out bytes.Buffer
	if err := part(&out); err != nil {
		t.Error(err)
	}
	t.Log(out.String())
	return out.String()
}

// tinyCells are all cells with smaller objects.
func tinyCells() []cell {
	tiny := make([]cell, len(cells))
	for i, c := range cells {
		tiny[i] = c
		tiny[i].listed = min(c.listed, 10)
		tiny[i].size = min(c.size, 1<<20)
		if c.parts {
			tiny[i].size = partSize + 1<<20
		}
	}
	return tiny
}

func hasNginx() bool {
	_, err := exec.LookPath("nginx")
	return err == nil
}

func buildProxy(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "cmekproxy")
	build := exec.CommandContext(t.Context(), "go", "build", "-tags", "nodev", "-o", program, "../cmd/proxy")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return program
}

// testTarget returns a target that a server of the test serves.
func testTarget(name string, server *httptest.Server) *target {
	return &target{
		name: name, bucket: name, access: "a", secret: "b", prepared: make(map[string]bool),
		plain: endpoint{
			addr: server.Listener.Addr().String(),
			pids: func() []int { return []int{os.Getpid()} },
		},
	}
}

// put stores size bytes in a store, with a checksum in a trailer.
func put(t *testing.T, tgt *target, conn *connection, path string, size int64) error {
	t.Helper()
	_, err := conn.exchange(t.Context(), tgt, tgt.plain, uploadMessage(path, size, checksum.Named("CRC32")), nil)
	return err
}

func dial(t *testing.T, tgt *target) *connection {
	t.Helper()
	conn, err := tgt.plain.dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.close)
	return conn
}

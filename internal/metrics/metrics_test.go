package metrics_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// scrape returns the lines of /metrics that begin with a prefix.
func scrape(t *testing.T, m *metrics.Metrics, prefix string) (lines []string) {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("a scrape gets %d: %s", w.Code, w.Body)
	}
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, prefix) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func want(t *testing.T, got []string, lines ...string) {
	t.Helper()
	if g, w := strings.Join(got, "\n"), strings.Join(lines, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

func TestOriginUp(t *testing.T) {
	m := metrics.New()
	want(t, scrape(t, m, "cmekproxy_origin_up"))
	if up := m.OriginState(); up != nil {
		t.Errorf("up %v before the first answer", *up)
	}
	for _, row := range []struct {
		up   bool
		line string
	}{{false, "cmekproxy_origin_up 0"}, {true, "cmekproxy_origin_up 1"}} {
		m.OriginUp(row.up)
		want(t, scrape(t, m, "cmekproxy_origin_up"), row.line)
		if up := m.OriginState(); up == nil || *up != row.up {
			t.Errorf("after OriginUp(%v): %v", row.up, up)
		}
	}
}

func TestReloaded(t *testing.T) {
	m := metrics.New()
	m.Reloaded(time.UnixMilli(1500), nil)
	m.Reloaded(time.UnixMilli(2500), errors.New("a mistake"))
	want(t, scrape(t, m, "cmekproxy_config_"),
		"cmekproxy_config_last_reload_success_timestamp_seconds 1.5",
		"cmekproxy_config_last_reload_successful 0")
}

// A counter that appears with its first event would hide that event from rate.
func TestFaultsBeginWithZero(t *testing.T) {
	for _, line := range scrape(t, metrics.New(), "cmekproxy_origin_faults_total") {
		if strings.Contains(line, `"credentials"`) && strings.HasSuffix(line, " 0") {
			return
		}
	}
	t.Error("no counter of faults with 0")
}

func TestCountByName(t *testing.T) {
	m := metrics.New()
	m.RequestBy("app", "photos", 200, 1, 2) // not counted
	want(t, scrape(t, m, "cmekproxy_client_"))
	m.CountByName(1, 2)
	m.RequestBy("app", "photos", 200, 1, 2)
	m.RequestBy("", "photos", 403, 0, 3)
	m.RequestBy("app", "absent", 404, 0, 4)
	m.RequestBy("app", "videos", 206, 0, 5)
	m.RequestBy("batch", "third", 503, 0, 6)
	m.RequestBy("app", "", 200, 0, 7)

	want(t, scrape(t, m, "cmekproxy_client_bytes_total"),
		`cmekproxy_client_bytes_total{client="(none)",direction="in"} 0`,
		`cmekproxy_client_bytes_total{client="(none)",direction="out"} 3`,
		`cmekproxy_client_bytes_total{client="(others)",direction="in"} 0`,
		`cmekproxy_client_bytes_total{client="(others)",direction="out"} 6`,
		`cmekproxy_client_bytes_total{client="app",direction="in"} 1`,
		`cmekproxy_client_bytes_total{client="app",direction="out"} 18`)
	want(t, scrape(t, m, `cmekproxy_bucket_requests_total{bucket="(others)"`),
		`cmekproxy_bucket_requests_total{bucket="(others)",status_class="2xx"} 0`,
		`cmekproxy_bucket_requests_total{bucket="(others)",status_class="3xx"} 0`,
		`cmekproxy_bucket_requests_total{bucket="(others)",status_class="4xx"} 1`,
		`cmekproxy_bucket_requests_total{bucket="(others)",status_class="5xx"} 1`)
	want(t, scrape(t, m, `cmekproxy_bucket_requests_total{bucket="photos",status_class="4xx"`),
		`cmekproxy_bucket_requests_total{bucket="photos",status_class="4xx"} 1`)
}

// Names that clients and tenants choose do not break a scrape, and do not make
// series without limit.
func TestHostileNames(t *testing.T) {
	m := metrics.New()
	m.CountByName(10, 10)
	for _, name := range []string{
		"\xff\xfe", "a\x00b", "line\nbreak", `quote"}`, strings.Repeat("long", 1000), "(others)", "(none)", "ü", "{a=\"b\"} 1",
	} {
		m.RequestBy(name, name, 200, 1, 1)
	}
	for i := range 1000 {
		name := fmt.Sprint("made-up-", i)
		m.RequestBy("app", name, 404, 0, 0)
		m.RequestBy(name, name, 200, 0, 0)
	}

	lines := scrape(t, m, "cmekproxy_bucket_bytes_total")
	if len(lines) < 2*10 || len(lines) > 2*(10+2) { // with (none) and (others), which are also names here
		t.Errorf("%d series:\n%s", len(lines), strings.Join(lines, "\n"))
	}
	for _, line := range lines {
		if len(line) > 400 || strings.ContainsFunc(line, unicode.IsControl) || !utf8.ValidString(line) {
			t.Errorf("the line %.500q", line)
		}
	}
}

func TestBuild(t *testing.T) {
	m := metrics.New()
	m.Build("1.2.3", "abc", true)
	lines := scrape(t, m, "cmekproxy_build_info")
	if len(lines) != 1 || !strings.Contains(lines[0], `fips="on",goversion="go`) ||
		!strings.Contains(lines[0], `revision="abc",version="1.2.3"} 1`) {
		t.Error(lines)
	}
}

// The limit holds for requests at the same time.
func TestCountByNameTogether(t *testing.T) {
	m := metrics.New()
	m.CountByName(3, 3)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 100 {
				name := fmt.Sprint((i + j) % 10)
				m.RequestBy(name, name, 200, 1, 0)
			}
		})
	}
	all.Wait()

	lines, total := scrape(t, m, `cmekproxy_bucket_bytes_total{`), 0
	for _, line := range lines {
		_, value, _ := strings.Cut(line, "} ")
		n, err := strconv.Atoi(value)
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	if len(lines) != 2*(3+2) || total != 800 {
		t.Errorf("%d series with %d bytes, want 10 with 800", len(lines), total)
	}
}

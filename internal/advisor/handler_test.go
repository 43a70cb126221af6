package advisor_test

import (
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/advisor"
)

// recorded returns a Recorder after half an hour with one read per second,
// of 4 blobs in turn, and 18 new blobs. The current TTL is 2 minutes.
func recorded() *advisor.Recorder {
	c := newClock()
	r := advisor.New(advisor.Config{
		TTL:             2 * time.Minute,
		ProbesPerSecond: func() float64 { return 0.2 },
		Now:             c.Now,
	})

	for n := range 1800 {
		r.Opened(id(n % 4))
		r.Released(id(n % 4))

		if n%100 == 0 {
			r.Created(id(n + 4))
			r.Released(id(n + 4))
		}

		c.sleep(time.Second)
	}

	return r
}

func ask(r *advisor.Recorder, method, target, accept string) *http.Response {
	req := httptest.NewRequest(method, target, nil)
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	w := httptest.NewRecorder()
	r.Handler().ServeHTTP(w, req)
	return w.Result()
}

func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWhoGetsWhichForm(t *testing.T) {
	r := recorded()
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
	for _, tc := range []struct {
		name, method, query, accept string
		status                      int
		kind                        string
	}{
		{"nothing asked", "GET", "", "", 200, "text/html; charset=utf-8"},
		{"a browser", "GET", "", browser, 200, "text/html; charset=utf-8"},
		{"curl", "GET", "", "*/*", 200, "text/html; charset=utf-8"},
		{"JSON accepted", "GET", "", "application/json", 200, "application/json"},
		{"JSON among others", "GET", "", "text/plain;q=0.5, Application/JSON;q=0.9", 200, "application/json"},
		{"JSON by name", "GET", "?format=json", browser, 200, "application/json"},
		{"page by name", "GET", "?format=html", "application/json", 200, "text/html; charset=utf-8"},
		{"another form", "GET", "?format=xml", "", 400, "text/plain; charset=utf-8"},
		{"HEAD", "HEAD", "", "", 200, "text/html; charset=utf-8"},
		{"POST", "POST", "", "", 405, "text/plain; charset=utf-8"},
		{"DELETE", "DELETE", "?format=json", "", 405, "text/plain; charset=utf-8"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp := ask(r, tc.method, "/admin/ttl-advisor"+tc.query, tc.accept)
			if resp.StatusCode != tc.status || resp.Header.Get("Content-Type") != tc.kind {
				t.Errorf("%d %s, want %d %s", resp.StatusCode, resp.Header.Get("Content-Type"), tc.status, tc.kind)
			}
			if allow := resp.Header.Get("Allow"); (allow == "GET, HEAD") != (tc.status == 405) {
				t.Errorf("Allow: %q", allow)
			}
		})
	}
}

func TestJSON(t *testing.T) {
	want, err := os.ReadFile("testdata/report.json")
	if err != nil {
		t.Fatal(err)
	}
	if got := body(t, ask(recorded(), "GET", "/?format=json", "")); got != string(want) {
		t.Errorf("testdata/report.json is not\n%s", got)
	}
}

// document parses a page as XML, which it is except for void elements, so
// that unclosed tags are found. It returns the texts of the table rows and
// of the plot.
func document(t *testing.T, page string) (rows []string, plot []string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(page))
	d.Strict = false
	d.AutoClose = xml.HTMLAutoClose
	d.Entity = xml.HTMLEntity
	var path, cells []string
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the page is not well-formed: %v", err)
		}

		switch token := token.(type) {
		case xml.StartElement:
			path = append(path, token.Name.Local)
			for _, a := range token.Attr {
				if a.Name.Local == "src" || a.Name.Local == "style" || strings.HasPrefix(a.Name.Local, "on") {
					t.Errorf("<%s %s=%q>", token.Name.Local, a.Name.Local, a.Value)
				}
				if a.Name.Local == "href" && !strings.HasPrefix(a.Value, "?") {
					t.Errorf("a link to %q", a.Value)
				}
			}

			if slices.Contains([]string{"script", "link", "img", "iframe", "object"}, token.Name.Local) {
				t.Errorf("<%s>", token.Name.Local)
			}
		case xml.EndElement:
			path = path[:len(path)-1]
			if token.Name.Local == "tr" {
				rows, cells = append(rows, strings.Join(cells, "|")), nil
			}
		case xml.CharData:
			text := strings.TrimSpace(string(token))
			switch {
			case text == "":
			case slices.Contains(path, "tr"):
				cells = append(cells, text)
			case slices.Contains(path, "svg"):
				plot = append(plot, text)
			}
		}
	}

	if len(path) != 0 {
		t.Errorf("left open: %v", path)
	}
	return rows, plot
}

func TestPage(t *testing.T) {
	resp := ask(recorded(), "GET", "/", "")
	if csp := resp.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; ") || strings.Contains(csp, "unsafe") {
		t.Errorf("Content-Security-Policy: %s", csp)
	}

	page := body(t, resp)
	rows, plot := document(t, page)

	want := []string{
		"TTL|KMS calls|per second|USD|per month|Hit ratio|Unreadable|within|Data keys|in memory",
		"no cache|1.21|9.41|0.0 %|–|0",
		"10 s|0.543|4.22|66.6 %|10 s|1",
		"30 s|0.337|2.62|87.3 %|30 s|4",
		"1 min|0.277|2.15|93.3 %|1 min|3",
		"2 min|current|0.243|1.89|96.6 %|2 min|4",
		"5 min|0.223|1.74|98.6 %|5 min|5",
		"15 min|0.214|1.67|99.5 %|15 min|11",
		"1 h|warming up|≤ 0.212|≤ 1.65|≥ 99.7 %|1 h|22",
	}
	if !slices.Equal(rows, want) {
		t.Errorf("rows:\n%s\nwant:\n%s", strings.Join(rows, "\n"), strings.Join(want, "\n"))
	}

	for _, text := range []string{"current", "0.243", "96.6 %", "2 min", "≤ 0.212", "no cache"} {
		if !slices.Contains(plot, text) {
			t.Errorf("not in the plot: %q", text)
		}
	}

	if !strings.Contains(plot[1], "2 min: 0.243 KMS calls per second, hit ratio 96.6 %, unreadable within 2 "+
		"min; current.") {
		t.Errorf("the plot is described as %q", plot[1])
	}

	for _, text := range []string{
		"Shorter, 1 min:</strong> USD 0.26 a month more, 14 % more KMS calls; unreadable within 1 min instead " +
			"of 2 min.",
		"Longer, 5 min:</strong> USD 0.16 a month less, 8 % fewer KMS calls; unreadable within 5 min instead of 2 min.",
		"the accesses of the last 30 min.",
		"All data keys were observed",
		"Warming up:",
	} {
		if !strings.Contains(page, text) {
			t.Errorf("not in the page: %q", text)
		}
	}
}

func TestPageWithoutData(t *testing.T) {
	c := newClock()
	r := advisor.New(advisor.Config{TTL: time.Minute, Now: c.Now})
	c.sleep(90 * time.Second)
	page := body(t, ask(r, "GET", "/", ""))
	rows, plot := document(t, page)
	if len(rows) != 0 || len(plot) != 0 ||
		!strings.Contains(page, "No object was read or written in the last 1 min 30 s") {
		t.Errorf("%d rows, %d texts in the plot\n%s", len(rows), len(plot), page)
	}
}

func TestPageEscapes(t *testing.T) {
	c := newClock()
	r := advisor.New(advisor.Config{TTL: time.Minute, Now: c.Now, Currency: "<script>alert(1)</script>"})
	r.Opened(id(1))
	c.sleep(time.Minute)
	document(t, body(t, ask(r, "GET", "/", "")))
}

func TestPageOfASample(t *testing.T) {
	c := newClock()
	r := advisor.New(advisor.Config{TTL: 10 * time.Second, Now: c.Now})
	r.SetHash(mix)

	for n := range 60_000 {
		r.Created(id(n))
		r.Released(id(n))
	}

	c.sleep(time.Minute)
	page := body(t, ask(r, "GET", "/", ""))
	document(t, page)

	if !strings.Contains(page, "Estimated from a sample of one data key in 16") ||
		!strings.Contains(page, "1,000 new data keys") {
		t.Error(page)
	}
}

func TestPageWithProbes(t *testing.T) {
	c := newClock()
	r := advisor.New(advisor.Config{
		TTL:    5 * time.Minute,
		Window: func(ttl time.Duration) time.Duration { return min(ttl, 16500*time.Millisecond) },
		Now:    c.Now,
	})

	r.Opened(id(1))
	c.sleep(26 * time.Hour)
	page := body(t, ask(r, "GET", "/", ""))
	rows, _ := document(t, page)

	// The stream started more than a day ago and continues: one call for
	// each TTL.
	want := "5 min|current|0.003|0.03|–|16.5 s|1"
	if len(rows) != 8 || rows[5] != want {
		t.Errorf("rows:\n%s\nwant %s", strings.Join(rows, "\n"), want)
	}

	for _, text := range []string{
		"unreadable within 16.5 s as before.",
		"While probes get no answer, the TTL is the limit.",
	} {
		if !strings.Contains(page, text) {
			t.Errorf("not in the page: %q", text)
		}
	}
}

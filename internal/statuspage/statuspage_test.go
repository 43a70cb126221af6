package statuspage_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/statuspage"
)

// epoch is when the tests begin.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// recorder is a History with a clock, and real metrics.
type recorder struct {
	*statuspage.History

	metrics *metrics.Metrics
	now     time.Time
}

func newRecorder() *recorder {
	r := &recorder{metrics: metrics.New(), now: epoch}
	r.History = statuspage.NewHistory(
		r.metrics.Totals,
		func() statuspage.Now { return statuspage.Now{Running: 3, Connections: 7} },
		func() time.Time { return r.now },
	)
	return r
}

func (r *recorder) after(d time.Duration) {
	r.now = r.now.Add(d)
	r.Sample()
}

func TestHistoryCountsWhatIsNew(t *testing.T) {
	r := newRecorder()
	request := func(operation string, status int, code string) {
		r.metrics.Request(operation, status, code, time.Millisecond, "")
		r.metrics.Received(10)
		r.metrics.Sent(100)
	}
	request("GetObject", 200, "")
	request("GetObject", 404, "NoSuchKey")
	request("PutObject", 503, "SlowDown")
	r.metrics.KMS("main", "unwrap", "ok", time.Millisecond)
	r.metrics.KMS("main", "unwrap", "revoked", time.Millisecond)
	r.metrics.OriginFault("timeout")
	r.after(5 * time.Second)
	request("GetObject", 304, "")
	request("GetObject", 404, "NoSuchKey")
	r.after(10 * time.Second)
	r.after(0) // no time has passed: no point

	points := r.Points()
	if len(points) != 2 {
		t.Fatalf("%d points", len(points))
	}
	first, second := points[0], points[1]
	if first.Served != 1 || first.ClientErrors != 1 || first.ServerErrors != 1 || first.In != 30 || first.Out != 300 ||
		first.KMSCalls != 2 || first.KMSFailed != 1 || first.Seconds != 5 || first.Running != 3 || first.Connections != 7 {
		t.Errorf("%+v", first)
	}
	if second.Served != 1 || second.ClientErrors != 1 || second.ServerErrors != 0 || second.KMSCalls != 0 ||
		second.Seconds != 10 {
		t.Errorf("%+v", second)
	}

	var report statuspage.Report
	report.Complete(points)
	if len(report.Errors) != 2 ||
		report.Errors[0] != (statuspage.Failures{Operation: "GetObject", Status: "404", Code: "NoSuchKey", Count: 2}) {
		t.Errorf("%+v", report.Errors)
	}
	if report.Store.Faults["timeout"] != 1 {
		t.Errorf("%v", report.Store.Faults)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	r := newRecorder()
	for range 200 {
		for kind := range 40 {
			r.metrics.Request("GetObject", 400, fmt.Sprint("Code", kind), time.Millisecond, "")
		}
		r.metrics.Request("GetObject", 400, "Frequent", time.Millisecond, "")
		r.metrics.Request("GetObject", 400, "Frequent", time.Millisecond, "")
		r.after(5 * time.Second)
	}

	var report statuspage.Report
	report.Complete(r.Points())
	if len(report.Course) != 180 || !report.Course[179].Time.Equal(r.now) {
		t.Errorf("%d points", len(report.Course))
	}
	if len(report.Errors) > 32 || report.Errors[0].Code != "Frequent" || report.Errors[0].Count != 360 {
		t.Errorf("%d kinds of errors, first %+v", len(report.Errors), report.Errors[0])
	}
}

// sound is a report of a proxy that has no problems.
func sound() statuspage.Report {
	up := true
	return statuspage.Report{
		Time:   epoch,
		Proxy:  statuspage.Proxy{Version: "v1", Host: "host-1", Started: epoch, State: statuspage.Serving, Since: epoch},
		Config: statuspage.Config{Path: "/etc/cmekproxy.yaml", Fingerprint: "0123"},
		Window: statuspage.Window{Stated: 30, InForce: 30},
		Load:   statuspage.Load{ConnectionsLimit: 100},
		Keys: []statuspage.Key{{
			Name: "main", Provider: "aws-kms", ID: "arn:main", State: "usable", Window: 30, DEKs: 12,
		}},
		Store: statuspage.Store{Endpoint: "https://store", Region: "eu-central-1", Up: &up},
		TLS:   &statuspage.TLS{Names: []string{"s3.example"}, Begins: epoch, Ends: epoch.AddDate(0, 3, 0)},
		Audit: &statuspage.Audit{Where: "/var/log/audit"},
	}
}

func TestNotices(t *testing.T) {
	down := false
	for _, c := range []struct {
		name   string
		change func(r *statuspage.Report)
		want   string // in the first notice; "" for no notice
	}{
		{"nothing", func(*statuspage.Report) {}, ""},
		{"revoked", func(r *statuspage.Report) { r.Keys[0].State = "revoked" }, "problem: The KMS refuses the key main."},
		{"no answer", func(r *statuspage.Report) { r.Keys[0].State = "unreachable" }, "problem: The KMS of the key main does"},
		{"not open", func(r *statuspage.Report) { r.Keys[0].State = "unopened" }, "problem: The proxy could not open the key"},
		{"unused", func(r *statuspage.Report) { r.Keys[0].State = "unused" }, ""},
		{"a long window", func(r *statuspage.Report) { r.Window.InForce = 300 }, "problem: A revocation may take 5 min"},
		{"store away", func(r *statuspage.Report) { r.Store.Up = &down }, "problem: The store does not serve"},
		{"no store yet", func(r *statuspage.Report) { r.Store.Up = nil }, ""},
		{"an old certificate", func(r *statuspage.Report) { r.TLS.Ends = epoch }, "problem: The certificate of the S3 port has exp"},
		{"a young certificate", func(r *statuspage.Report) { r.TLS.Begins = epoch.Add(1) }, "problem: The certificate of the S3 port is not"},
		{"soon", func(r *statuspage.Report) { r.TLS.Ends = epoch.AddDate(0, 0, 13) }, "warning: The certificate of the S3 port expires in 13 d"},
		{"not soon", func(r *statuspage.Report) { r.TLS.Ends = epoch.AddDate(0, 0, 15) }, ""},
		{"plain HTTP", func(r *statuspage.Report) { r.TLS = nil }, ""},
		{"audit, long ago", func(r *statuspage.Report) { r.Audit.Failures = 2 }, ""},
		{"reloaded", func(r *statuspage.Report) { r.Config.Reload = &statuspage.Reload{} }, ""},
		{
			"a failed reload", func(r *statuspage.Report) { r.Config.Reload = &statuspage.Reload{Error: "line 7"} },
			"problem: The last reload of the configuration failed: line 7",
		},
		{
			"half a reload", func(r *statuspage.Report) { r.Config.NeedsRestart = []string{"listen"} },
			"warning: Changed settings are not in force: listen.",
		},
		{"a tenant", func(r *statuspage.Report) { r.Tenants = &statuspage.Tenants{Problems: 1} }, "problem: 1 file of a tenant has"},
		{"connections", func(r *statuspage.Report) { r.Load.Connections = 100 }, "warning: All 100 connections"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := sound()
			c.change(&r)
			r.Complete(nil)
			got := ""
			if len(r.Attention) > 0 {
				got = string(r.Attention[0].Severity) + ": " + r.Attention[0].What
				if r.Attention[0].Do == "" {
					t.Error("nothing to do")
				}
			}
			if !strings.HasPrefix(got, c.want) || (got == "") != (c.want == "") || len(r.Attention) > 1 {
				t.Errorf("%q, want %q", r.Attention, c.want)
			}
		})
	}
}

func TestNoticesOfErrors(t *testing.T) {
	for code, want := range map[string]statuspage.Severity{
		"ObjectIntegrityError": statuspage.Problem, "PlaintextObject": statuspage.Warning, "SlowDown": statuspage.Warning,
		"NoSuchKey": "",
	} {
		r := newRecorder()
		r.metrics.Request("GetObject", 400, code, time.Millisecond, "")
		r.after(5 * time.Second)
		report := sound()
		report.Complete(r.Points())
		switch {
		case want == "" && len(report.Attention) != 0:
			t.Errorf("%s: %+v", code, report.Attention)
		case want != "" && (len(report.Attention) != 1 || report.Attention[0].Severity != want):
			t.Errorf("%s: %+v", code, report.Attention)
		}
	}
}

// Records that could not be written need attention for as long as the page
// shows their time, and not until a restart.
func TestNoticeOfTheAuditLogEnds(t *testing.T) {
	rec := newRecorder()
	rec.metrics.Unaudited.Add(2)
	rec.after(5 * time.Second)
	r := sound()
	r.Complete(rec.Points())
	if len(r.Attention) != 1 || !strings.HasPrefix(r.Attention[0].What, "2 records could not be written") {
		t.Errorf("%+v", r.Attention)
	}

	for range 180 {
		rec.after(5 * time.Second)
	}
	r = sound()
	r.Audit.Failures = int(rec.metrics.Totals().Unaudited)
	r.Complete(rec.Points())
	if len(r.Attention) != 0 || r.Audit.Failures != 2 {
		t.Errorf("%+v, %+v", r.Attention, r.Audit)
	}
}

func TestProblemsComeFirst(t *testing.T) {
	r := sound()
	r.TLS.Ends = epoch.AddDate(0, 0, 2)
	r.Complete([]statuspage.Point{{Unaudited: 1}})
	if len(r.Attention) != 2 || r.Attention[0].Severity != statuspage.Problem {
		t.Errorf("%+v", r.Attention)
	}
}

// page returns the page of a report.
func page(t *testing.T, r statuspage.Report) string {
	t.Helper()
	w := httptest.NewRecorder()
	statuspage.Handler(func() statuspage.Report { return r }).
		ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestPage(t *testing.T) {
	rec := newRecorder()
	rec.metrics.Request("GetObject", 404, "NoSuchKey", time.Millisecond, "")
	rec.metrics.Sent(1 << 20)
	rec.after(5 * time.Second)
	rec.after(5 * time.Second)
	r := sound()
	r.Proxy.State, r.Load.Running = statuspage.Draining, 2
	until := epoch.Add(20 * time.Second)
	r.Proxy.Until = &until
	r.Clients = []statuspage.Client{{Name: "app", Running: 2}}
	r.Complete(rec.Points())

	got := page(t, r)
	for _, want := range []string{
		"<title>draining – cmekproxy host-1</title>",
		"Draining for 0 s: 2 requests are left. Those that still run in 20 s are aborted.",
		"Nothing needs attention.",
		`<th scope="row">main<br>`, "● usable", "NoSuchKey",
		"from clients: now 0 bytes, at most 0 bytes.",
		"to clients: now 0 bytes, at most 205 KiB.",
		"s3.example", "in 92 d", `<th scope="row">app</th>`, "it serves the proxy",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("not in the page: %q", want)
		}
	}
}

func TestPageOfAProblem(t *testing.T) {
	r := sound()
	r.Keys[0].State, r.Keys[0].Window, r.Keys[0].Error = "unreachable", 300, "dial tcp: refused"
	r.Window.InForce = 300
	r.Complete(nil)
	got := page(t, r)
	for _, want := range []string{
		"<title>(2) cmekproxy host-1</title>", "▲ unreachable", "5 min ▲ longer than stated", "dial tcp: refused",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("not in the page: %q", want)
		}
	}
}

// TestPageEscapes: names of keys, clients and errors are text, whatever they
// contain.
func TestPageEscapes(t *testing.T) {
	const hostile = `</td><script>alert(1)</script>`
	r := sound()
	r.Proxy.Host, r.Keys[0].Name, r.Keys[0].Error = hostile, hostile, hostile
	r.Clients = []statuspage.Client{{Name: hostile}}
	r.Errors = []statuspage.Failures{{Operation: hostile, Code: hostile}}
	r.Store.Endpoint = hostile
	if strings.Contains(page(t, r), "<script>alert") {
		t.Error("a name is markup")
	}
}

func TestJSON(t *testing.T) {
	r := sound()
	r.Complete(nil)
	w := httptest.NewRecorder()
	statuspage.Handler(func() statuspage.Report { return r }).
		ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/?format=json", nil))
	var back statuspage.Report
	if err := json.Unmarshal(w.Body.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if back.Window != r.Window || back.Keys[0].Name != "main" || back.Attention == nil {
		t.Errorf("%s", w.Body)
	}
}

package deploy_test

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v4"

	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// alertRule is an alert in prometheus/alerts.yaml.
type alertRule struct {
	Alert, Expr string
	Labels      map[string]string
	Annotations map[string]string
}

func alertRules(t *testing.T) (rules []alertRule) {
	t.Helper()
	var file struct {
		Groups []struct{ Rules []alertRule }
	}
	if err := yaml.Unmarshal([]byte(read(t, "prometheus/alerts.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	for _, group := range file.Groups {
		rules = append(rules, group.Rules...)
	}
	if len(rules) < 20 {
		t.Fatalf("only %d alerts", len(rules))
	}
	return rules
}

// TestAlerts checks that each alert says what it is about, and has a section in
// docs/alerts.md; and that each section there is about an alert.
func TestAlerts(t *testing.T) {
	page, module := read(t, "../docs/alerts.md"), regexp.MustCompile(`(?m)^module (.+)$`).FindStringSubmatch(read(t, "../go.mod"))[1]
	sections := regexp.MustCompile(`(?m)^### (.+)$`).FindAllStringSubmatch(page, -1)
	var names []string
	for _, rule := range alertRules(t) {
		names = append(names, rule.Alert)
		t.Run(rule.Alert, func(t *testing.T) {
			if s := rule.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("severity %q", s)
			}
			if rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
				t.Error("no summary or no description")
			}
			want := "https://" + module + "/blob/main/docs/alerts.md#" + strings.ToLower(rule.Alert)
			if got := rule.Annotations["runbook_url"]; got != want {
				t.Errorf("runbook_url %q, want %q", got, want)
			}
		})
	}

	var explained []string
	for _, s := range sections {
		explained = append(explained, s[1])
	}
	slices.Sort(names)
	slices.Sort(explained)
	if !slices.Equal(names, explained) {
		t.Errorf("alerts are %v, sections of docs/alerts.md are %v", names, explained)
	}
}

// TestAlertsHaveCases checks that each alert has a case in which it fires, and
// one in which it does not. promtool runs them in prometheus/check.sh.
func TestAlertsHaveCases(t *testing.T) {
	var file struct {
		Tests []struct {
			Cases []struct {
				Alert  string           `yaml:"alertname"`
				Alerts []map[string]any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "prometheus/alerts_test.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	fires, rests := make(map[string]bool), make(map[string]bool)
	for _, test := range file.Tests {
		quiet := true
		for _, c := range test.Cases {
			fires[c.Alert] = fires[c.Alert] || len(c.Alerts) > 0
			quiet = quiet && len(c.Alerts) == 0
		}
		for _, c := range test.Cases {
			rests[c.Alert] = rests[c.Alert] || quiet
		}
	}
	for _, rule := range alertRules(t) {
		if !fires[rule.Alert] || !rests[rule.Alert] {
			t.Errorf("%s: fires in a case: %v, never fires in another: %v", rule.Alert, fires[rule.Alert], rests[rule.Alert])
		}
	}
}

// expressions returns the expressions of the alerts and of the dashboard.
func expressions(t *testing.T) (all []string) {
	t.Helper()
	for _, rule := range alertRules(t) {
		all = append(all, rule.Expr)
	}

	var find func(value any)
	find = func(value any) {
		switch v := value.(type) {
		case map[string]any:
			for name, inner := range v {
				if text, ok := inner.(string); ok && (name == "expr" || name == "query") {
					all = append(all, text)
				}
				find(inner)
			}
		case []any:
			for _, inner := range v {
				find(inner)
			}
		}
	}
	var dashboard any
	if err := json.Unmarshal([]byte(read(t, "prometheus/dashboard.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	find(dashboard)
	if len(all) < 80 {
		t.Fatalf("only %d expressions", len(all))
	}
	return all
}

// labelsByMetric returns the metrics of the proxy with their labels.
func labelsByMetric(t *testing.T) map[string][]string {
	t.Helper()
	labels := map[string][]string{
		"up": nil, // of Prometheus
		// These exist only with tls.
		"cmekproxy_tls_certificate_expiry_timestamp_seconds": nil,
		"cmekproxy_tls_client_ca_expiry_timestamp_seconds":   nil,
	}
	for line := range strings.Lines(read(t, "../cmd/proxy/testdata/interface.txt")) {
		if entry, ok := strings.CutPrefix(strings.TrimSpace(line), "metric "); ok {
			name, list, _ := strings.Cut(entry, " ")
			labels[name] = strings.Split(list, ",")
		}
	}

	// Those of the process.
	described := make(chan *prometheus.Desc)
	go func() { defer close(described); metrics.New().Describe(described) }()
	name := regexp.MustCompile(`fqName: "((?:process|go)_[^"]*)"`)
	for d := range described {
		if m := name.FindStringSubmatch(d.String()); m != nil {
			labels[m[1]] = nil
		}
	}
	return labels
}

var (
	metricOf   = regexp.MustCompile(`\b((?:cmekproxy|process|go)_[a-z0-9_]+|up)\b(?:\{([^}]*)\})?`)
	labelOf    = regexp.MustCompile(`([a-z_]+) ?(?:=~|!~|!=|=)`)
	histograms = regexp.MustCompile(`_(count|sum|bucket)$`)
)

// unknown returns the metrics and the labels in an expression that the proxy does
// not have.
func unknown(expr string, labels map[string][]string) (names []string) {
	for _, m := range metricOf.FindAllStringSubmatch(expr, -1) {
		own, ok := labels[m[1]]
		if !ok {
			own, ok = labels[histograms.ReplaceAllString(m[1], "")]
		}
		if !ok {
			names = append(names, m[1])
			continue
		}
		for _, label := range labelOf.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains([]string{"job", "instance", "le"}, label[1]) && !slices.Contains(own, label[1]) {
				names = append(names, m[1]+"{"+label[1]+"}")
			}
		}
	}
	return names
}

// TestExpressionsUseExistingMetrics compares the metrics in alerts and dashboard
// with those of the proxy.
func TestExpressionsUseExistingMetrics(t *testing.T) {
	labels := labelsByMetric(t)
	for _, expr := range expressions(t) {
		if names := unknown(expr, labels); len(names) > 0 {
			t.Errorf("there is no %v: %s", names, expr)
		}
	}

	for name, row := range map[string]struct{ expr, want string }{
		"a metric that does not exist": {`rate(cmekproxy_requests[5m])`, "cmekproxy_requests"},
		"a label that does not exist":  {`cmekproxy_kms_breaker_open{job=~"x", kms_key="a"}`, "cmekproxy_kms_breaker_open{kms_key}"},
		"a misspelt suffix":            {`cmekproxy_kms_duration_seconds_counts`, "cmekproxy_kms_duration_seconds_counts"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := unknown(row.expr, labels); !slices.Equal(got, []string{row.want}) {
				t.Errorf("found %v, want %s", got, row.want)
			}
		})
	}
}

// TestDashboardRows checks that each row that an operator looks for is there, and
// has panels.
func TestDashboardRows(t *testing.T) {
	var dashboard struct {
		Panels []struct{ Type, Title string }
	}
	if err := json.Unmarshal([]byte(read(t, "prometheus/dashboard.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	row, panels := "", make(map[string]int)
	for _, p := range dashboard.Panels {
		if p.Type == "row" {
			row = p.Title
			continue
		}
		panels[row]++
	}
	for _, title := range []string{
		"Traffic", "Errors", "Latency", "Keys and KMS", "Cache of data keys", "Revocation", "Store", "Saturation",
	} {
		if panels[title] < 3 {
			t.Errorf("row %s has %d panels", title, panels[title])
		}
	}
}

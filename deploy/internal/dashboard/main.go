// Dashboard makes the dashboard for Grafana in deploy/prometheus.
//
//	dashboard        prints dashboard.json
//	dashboard rules  prints its expressions as recording rules, which promtool can check
//
// panels.go has what is in the dashboard.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	switch {
	case len(args) == 0:
		text, err := generate()
		if err != nil {
			return err
		}
		_, err = out.Write(text)
		return err
	case len(args) == 1 && args[0] == "rules":
		return writeRules(out)
	default:
		return errors.New("give no operand, or rules")
	}
}

// generate returns the dashboard as JSON.
func generate() ([]byte, error) {
	built, err := build().Build()
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(built, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(text, '\n'), nil
}

// writeRules writes a recording rule for each expression. Grafana replaces
// $__rate_interval before Prometheus sees it.
func writeRules(out io.Writer) error {
	var b strings.Builder
	b.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	n := 0
	for _, r := range rows() {
		for _, p := range r.panels {
			for _, q := range p.queries {
				n++
				expr := strings.ReplaceAll(q.selected(), "$__rate_interval", "5m")
				fmt.Fprintf(&b, "      # %s: %s\n      - {record: 'dashboard:%d', expr: '%s'}\n",
					r.title, p.title, n, strings.ReplaceAll(expr, "'", "''"))
			}
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// Sizes of panels; the dashboard has 24 columns.
const (
	statHeight, statWidth = 4, 4
	plotHeight, plotWidth = 8, 8
)

// source is the data source that the variable names.
func source() common.DataSourceRef {
	return common.DataSourceRef{Type: new("prometheus"), Uid: new("${datasource}")}
}

// build returns the classic form of dashboards: the newer one needs Grafana 12.
//
//nolint:staticcheck // the classic form is marked as deprecated
func build() *dashboard.DashboardBuilder {
	b := dashboard.NewDashboardBuilder("cmekproxy").
		Uid("cmekproxy").
		Description("Made by deploy/internal/dashboard of cmekproxy.").
		Tags([]string{"cmekproxy", "s3"}).
		Refresh("30s").
		Time("now-3h", "now").
		Timezone("browser").
		Tooltip(dashboard.DashboardCursorSyncCrosshair).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus")).
		WithVariable(labelVariable("job", "Job", "label_values(cmekproxy_build_info, job)")).
		WithVariable(labelVariable("instance", "Instance", `label_values(cmekproxy_build_info{job=~"$job"}, instance)`))

	for _, r := range rows() {
		b.WithRow(dashboard.NewRowBuilder(r.title))
		for _, p := range r.panels {
			b.WithPanel(p.build())
		}
	}
	return b
}

// labelVariable returns a variable whose values are those of a label.
func labelVariable(name, label, query string) *dashboard.QueryVariableBuilder {
	return dashboard.NewQueryVariableBuilder(name).
		Label(label).
		Datasource(source()).
		Query(dashboard.StringOrMap{String: &query}).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged).
		Sort(dashboard.VariableSortAlphabeticalAsc).
		Multi(true).
		IncludeAll(true).
		AllValue(".*").
		Current(dashboard.VariableOption{
			Text:  dashboard.StringOrArrayOfString{String: new("All")},
			Value: dashboard.StringOrArrayOfString{String: new("$__all")},
		})
}

// row is a row of panels.
type row struct {
	title  string
	panels []panel
}

// panel is a plot, or a number if it is a stat.
type panel struct {
	title, unit, description string
	queries                  []query
	stat                     bool
	// bad is the value from which on a number is red; 0 for none.
	bad float64
	// goodIsOne makes a number red below 1.
	goodIsOne bool
}

// query is an expression with the legend of its series. {} and {, begin a
// selector, which the variables job and instance narrow.
type query struct{ expr, legend string }

func (q query) selected() string {
	const narrow = `{job=~"$job", instance=~"$instance"`
	return strings.NewReplacer("{}", narrow+"}", "{,", narrow+",").Replace(q.expr)
}

// builds returns the queries of a panel for Grafana, which names them A, B, C.
func (p panel) builds() (out []cog.Builder[variants.Dataquery]) {
	for i, q := range p.queries {
		out = append(out, prometheus.NewDataqueryBuilder().
			RefId(string(rune('A'+i))).
			Datasource(source()).
			Expr(q.selected()).
			LegendFormat(q.legend))
	}
	return out
}

func (p panel) build() cog.Builder[dashboard.Panel] {
	if p.stat {
		return stat.NewPanelBuilder().
			Title(p.title).Description(p.description).Unit(p.unit).Datasource(source()).
			Height(statHeight).Span(statWidth).
			GraphMode(common.BigValueGraphModeNone).
			NoValue("no data").
			Thresholds(p.thresholds()).
			Targets(p.builds())
	}

	return timeseries.NewPanelBuilder().
		Title(p.title).Description(p.description).Unit(p.unit).Datasource(source()).
		Height(plotHeight).Span(plotWidth).
		Min(0).FillOpacity(8).ShowPoints(common.VisibilityModeNever). //nolint:mnd // percent
		Legend(common.NewVizLegendOptionsBuilder().
			DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom).ShowLegend(true)).
		Tooltip(common.NewVizTooltipOptionsBuilder().
			Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending)).
		Targets(p.builds())
}

func (p panel) thresholds() *dashboard.ThresholdsConfigBuilder {
	steps := []dashboard.Threshold{{Color: "green"}}
	switch {
	case p.goodIsOne:
		steps = []dashboard.Threshold{{Color: "red"}, {Color: "green", Value: new(1.0)}}
	case p.bad > 0:
		steps = append(steps, dashboard.Threshold{Color: "red", Value: &p.bad})
	}
	return dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(steps)
}

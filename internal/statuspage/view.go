package statuspage

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	_ "embed"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/webpage"
)

//go:embed page.html
var pageText string

var pageTemplate = webpage.Parse(pageText)

// Handler serves the report, as a page or as JSON.
func Handler(report func() Report) http.Handler {
	return &webpage.Report[Report]{
		Now: report, View: func(r Report) any { return newView(&r) }, Page: pageTemplate,
	}
}

// view is a Report formatted for page.html.
type view struct {
	Title     string // of the window
	State     string
	StateText string
	Host      string
	At        string
	Notices   []Notice
	Figures   []named
	Plots     []plot
	Keys      []keyRow
	MoreKeys  string
	Errors    []Failures
	Over      string // the time that Errors covers
	Clients   []Client
	Parts     []part
}

type named struct{ Name, Value string }

// part is a list of facts about one thing.
type part struct {
	Name  string
	Facts []named
}

type keyRow struct {
	Key

	Mark, Class string // of the state
	Answer      string
	Window      string
	Longer      bool // than stated
}

func newView(r *Report) view {
	v := view{
		State: string(r.Proxy.State), StateText: stateText(r), Host: r.Proxy.Host,
		At:      r.Time.UTC().Format("2006-01-02 15:04:05 UTC"),
		Notices: r.Attention, Figures: figures(r), Plots: plots(r.Course),
		Errors: r.Errors, Over: over(r.Course), Clients: r.Clients,
		Parts: []part{storePart(r), proxyPart(r), configPart(r), safetyPart(r)},
	}
	v.Title = title(r)
	for _, k := range r.Keys {
		v.Keys = append(v.Keys, newKeyRow(r, k))
	}
	if r.MoreKeys > 0 {
		v.MoreKeys = countOf(r.MoreKeys, "more key of a tenant is", "more keys of tenants are") +
			" open, used less recently."
	}
	return v
}

// title begins with what is wrong, because a tab shows only its beginning.
func title(r *Report) string {
	problems := 0
	for _, n := range r.Attention {
		if n.Severity == Problem {
			problems++
		}
	}
	switch {
	case problems > 0:
		return fmt.Sprintf("(%d) cmekproxy %s", problems, r.Proxy.Host)
	case r.Proxy.State != Serving:
		return string(r.Proxy.State) + " – cmekproxy " + r.Proxy.Host
	default:
		return "cmekproxy " + r.Proxy.Host
	}
}

func stateText(r *Report) string {
	since := webpage.Duration(r.Time.Sub(r.Proxy.Since).Round(time.Second))
	switch r.Proxy.State {
	case Draining:
		text := fmt.Sprintf("Draining for %s: %s left.", since, countOf(r.Load.Running, "request is", "requests are"))
		if r.Proxy.Until != nil {
			text += " Those that still run in " + webpage.Duration(r.Proxy.Until.Sub(r.Time).Round(time.Second)) +
				" are aborted."
		}
		return text
	case Starting:
		return "Starting for " + since + "."
	default:
		return "Serving for " + since + "."
	}
}

func over(points []Point) string {
	if len(points) == 0 {
		return "since the start"
	}
	first := points[0]
	length := points[len(points)-1].Time.Sub(first.Time) + time.Duration(first.Seconds*float64(time.Second))
	return "in the last " + webpage.Duration(length.Round(time.Second))
}

// recent is how many points the figures are about: a minute.
const recent = int(time.Minute / interval)

func figures(r *Report) []named {
	points := r.Course[max(0, len(r.Course)-recent):]
	var length, all, failed float64
	for _, p := range points {
		length += p.Seconds
		all += p.Served + p.ClientErrors + p.ServerErrors
		failed += p.ServerErrors
	}
	rate, share := "–", "–"
	if length > 0 {
		rate = webpage.Number(all / length)
	}
	if all > 0 {
		share = webpage.Percent(failed / all)
	}

	return []named{
		{"requests per second, in the last minute", rate},
		{"of them with status 500 or more", share},
		{"running requests", webpage.Grouped(int64(r.Load.Running))},
		{"connections", limited(r.Load.Connections, r.Load.ConnectionsLimit)},
		{"a revoked key is unreadable within", seconds(r.Window.InForce)},
		{"unwrapped data keys in memory", webpage.Grouped(int64(r.Load.DEKs))},
	}
}

func limited(n, limit int) string {
	if limit <= 0 {
		return webpage.Grouped(int64(n))
	}
	return webpage.Grouped(int64(n)) + " of " + webpage.Grouped(int64(limit))
}

func plots(points []Point) []plot {
	return []plot{
		newPlot("Requests per second", points, numbers,
			series{"main", "answered as asked", perSecond(func(p Point) float64 { return p.Served })},
			series{"quiet", "status 4xx", perSecond(func(p Point) float64 { return p.ClientErrors })},
			series{"bad", "status 5xx", perSecond(func(p Point) float64 { return p.ServerErrors })}),
		newPlot("Body bytes per second", points, bytes,
			series{"main", "to clients", perSecond(func(p Point) float64 { return p.Out })},
			series{"quiet", "from clients", perSecond(func(p Point) float64 { return p.In })}),
		newPlot("KMS calls per second", points, numbers,
			series{"main", "all", perSecond(func(p Point) float64 { return p.KMSCalls })},
			series{"bad", "failed or refused", perSecond(func(p Point) float64 { return p.KMSFailed })}),
		newPlot("Running requests", points, numbers,
			series{"main", "running requests", func(p Point) float64 { return float64(p.Running) }},
			series{"quiet", "connections", func(p Point) float64 { return float64(p.Connections) }}),
	}
}

// marks are symbols and styles of states, so that color is not all that
// tells them apart.
var marks = map[string][2]string{
	string(keyring.Usable):      {"●", "good"},
	string(keyring.Unused):      {"○", "quiet"},
	string(keyring.Revoked):     {"■", "bad"},
	string(keyring.Unreachable): {"▲", "bad"},
	string(keyring.Unopened):    {"▲", "bad"},
}

func newKeyRow(r *Report, k Key) keyRow {
	row := keyRow{
		Key: k, Answer: "none yet", Window: seconds(k.Window),
		Longer: k.Window > r.Window.Stated,
	}
	row.Mark, row.Class = marks[k.State][0], marks[k.State][1]
	if k.Answered != nil {
		row.Answer = ago(r.Time, *k.Answered)
	}
	if k.Open != nil {
		row.Answer = countOf(*k.Open, "key is open", "keys are open")
	}
	return row
}

func ago(now, at time.Time) string {
	return webpage.Duration(max(0, now.Sub(at)).Round(time.Second)) + " ago"
}

func storePart(r *Report) part {
	state := "no answer yet"
	if r.Store.Up != nil {
		state = map[bool]string{true: "it serves the proxy", false: "it does not serve the proxy"}[*r.Store.Up]
	}
	p := part{"Store", []named{{"endpoint", r.Store.Endpoint}, {"region", r.Store.Region}, {"state", state}}}

	var faults []string
	for _, kind := range slices.Sorted(maps.Keys(r.Store.Faults)) {
		faults = append(faults, fmt.Sprintf("%s %d", kind, r.Store.Faults[kind]))
	}
	p.Facts = append(p.Facts, named{"faults " + over(r.Course), orNone(faults)})
	return p
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

func proxyPart(r *Report) part {
	p := part{"Proxy", []named{
		{"version", r.Proxy.Version},
		{"S3 port", r.Proxy.S3},
		{"started", r.Proxy.Started.UTC().Format("2006-01-02 15:04:05 UTC")},
		{"memory that running requests may hold", webpage.Bytes(float64(r.Load.Memory)) + ofLimit(r.Load.MemoryLimit)},
		{"transfers that use a data key", webpage.Grouped(int64(r.Load.Leases))},
	}}
	if r.Tenants != nil {
		p.Facts = append(p.Facts, named{"tenants", webpage.Grouped(int64(r.Tenants.Served))})
	}
	return p
}

func ofLimit(limit int64) string {
	if limit <= 0 {
		return ""
	}
	return " of " + webpage.Bytes(float64(limit))
}

func configPart(r *Report) part {
	p := part{"Configuration", []named{{"fingerprint, without secrets", r.Config.Fingerprint}}}
	if r.Config.Path != "" {
		p.Facts = append([]named{{"file", r.Config.Path}}, p.Facts...)
	}
	last := "none since the start"
	if reload := r.Config.Reload; reload != nil {
		last = ago(r.Time, reload.Time) + ", applied"
		if reload.Error != "" {
			last = ago(r.Time, reload.Time) + ", refused"
		}
	}
	p.Facts = append(p.Facts, named{"last reload", last})
	return p
}

func safetyPart(r *Report) part {
	p := part{"Safety", []named{{"revocation window as stated", seconds(r.Window.Stated)}}}
	audit := "off"
	if r.Audit != nil {
		audit = r.Audit.Where + ", " + countOf(r.Audit.Failures, "record", "records") + " not written since the start"
	}
	p.Facts = append(p.Facts, named{"audit log", audit})
	if r.TLS == nil {
		return part{p.Name, append(p.Facts, named{"certificate", "none: plain HTTP"})}
	}
	return part{p.Name, append(
		p.Facts,
		named{"certificate", strings.Join(r.TLS.Names, ", ")},
		named{"issuer", r.TLS.Issuer},
		named{"expires", r.TLS.Ends.UTC().Format("2006-01-02 15:04 UTC") + ", in " +
			webpage.Duration(r.TLS.Ends.Sub(r.Time).Round(time.Minute))},
	)}
}

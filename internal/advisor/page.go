package advisor

import (
	_ "embed"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/webpage"
)

//go:embed page.html
var pageText string

var pageTemplate = webpage.Parse(pageText)

// view is a Report formatted for page.html.
type view struct {
	Empty    string // why there is no data, if so
	Observed string
	Currency string
	Figures  []named // for the current TTL
	Steps    []named // the effect of the next shorter and the next longer TTL
	Plot     plot
	Rows     []viewRow
	Warming  bool // a row is warming up
	Notes    []string
}

type named struct{ Name, Value string }

type viewRow struct {
	TTL, Calls, Cost, HitRatio, Window, Held string
	Current, WarmingUp                       bool
}

func newView(rep Report) view {
	v := view{Observed: webpage.Duration(rep.Observed), Currency: rep.Currency}
	// Streams that started earlier may still renew, most often with the
	// shortest TTL.
	if rep.AccessesPerSecond == 0 && rep.CreatesPerSecond == 0 && rep.Rows[1].CallsPerSecond <= rep.ProbesPerSecond {
		v.Empty = "No object was read or written in the last " + v.Observed +
			". Come back when there has been some traffic."
		return v
	}

	for i, row := range rep.Rows {
		v.Rows = append(v.Rows, newViewRow(rep, row))
		if row.Current {
			v.Figures = figures(rep, v.Rows[i])
			v.Steps = steps(rep, i)
		}
	}

	v.Warming = slices.ContainsFunc(rep.Rows, warmingUp)
	v.Plot = newPlot(rep.Rows, v.Rows)
	v.Notes = notes(rep)
	return v
}

func warmingUp(row Row) bool { return row.WarmingUp }

func newViewRow(rep Report, row Row) viewRow {
	v := viewRow{
		TTL:       webpage.Duration(row.TTL),
		Calls:     webpage.Number(row.CallsPerSecond),
		Cost:      money(row.MonthlyCost),
		HitRatio:  webpage.Percent(row.HitRatio),
		Window:    webpage.Duration(row.RevocationWindow),
		Held:      webpage.Grouped(int64(math.Round(row.DEKsHeld))),
		Current:   row.Current,
		WarmingUp: row.WarmingUp,
	}

	if row.TTL == 0 {
		v.TTL = "no cache"
		v.Window = "–" // a stream asks only once
	}
	if row.WarmingUp {
		v.Calls, v.Cost, v.HitRatio = atMost(v.Calls), atMost(v.Cost), "≥ "+v.HitRatio
	}

	if rep.AccessesPerSecond == 0 {
		v.HitRatio = "–"
	}
	return v
}

func atMost(number string) string {
	if strings.HasPrefix(number, "<") {
		return number
	}
	return "≤ " + number
}

func figures(rep Report, current viewRow) []named {
	return []named{
		{"current TTL", current.TTL},
		{"unreadable after a revocation, within", current.Window},
		{"KMS calls per second", current.Calls},
		{rep.Currency + " per month", current.Cost},
		{"accesses without a KMS call", current.HitRatio},
	}
}

// steps compares the current row with its neighbors. "No cache" is not a
// choice, and rows that are warming up cannot be compared.
func steps(rep Report, current int) []named {
	var list []named
	for _, i := range []int{current - 1, current + 1} {
		if i < 1 || i >= len(rep.Rows) || rep.Rows[i].WarmingUp || rep.Rows[current].WarmingUp {
			continue
		}

		row, now := rep.Rows[i], rep.Rows[current]
		text := "the same cost"

		if d := row.MonthlyCost - now.MonthlyCost; d >= 0.005 {
			text = rep.Currency + " " + money(d) + " a month more"
		} else if d <= -0.005 {
			text = rep.Currency + " " + money(-d) + " a month less"
		}
		if now.CallsPerSecond > 0 {
			text += ", " + compared(row.CallsPerSecond/now.CallsPerSecond) + " KMS calls"
		}

		if row.RevocationWindow == now.RevocationWindow {
			text += "; unreadable within " + webpage.Duration(now.RevocationWindow) + " as before."
		} else {
			text += "; unreadable within " + webpage.Duration(row.RevocationWindow) + " instead of " +
				webpage.Duration(now.RevocationWindow) + "."
		}

		name := "Shorter, "
		if i > current {
			name = "Longer, "
		}

		list = append(list, named{name + webpage.Duration(row.TTL), text})
	}

	return list
}

// compared describes a ratio.
func compared(ratio float64) string {
	change := math.Round(100 * (ratio - 1))
	switch {
	case change == 0:
		return "as many"
	case change < 0:
		return fmt.Sprintf("%.0f %% fewer", -change)
	case change < 100:
		return fmt.Sprintf("%.0f %% more", change)
	default:
		return fmt.Sprintf("%.1f times the", ratio)
	}
}

func notes(rep Report) []string {
	accesses, creates := webpage.Number(rep.AccessesPerSecond), webpage.Number(rep.CreatesPerSecond)
	list := []string{fmt.Sprintf("Observed per second: %s reads and %s new data keys. "+
		"Each new data key needs one KMS call with any TTL.", accesses, creates)}

	if rep.ProbesPerSecond > 0 {
		list[0] = fmt.Sprintf("Observed per second: %s reads. With any TTL, KMS calls are made "+
			"for %s new data keys and %s probes, which detect revocations.",
			accesses, creates, webpage.Number(rep.ProbesPerSecond))
	}

	price := strconv.FormatFloat(rep.PricePer10000, 'f', -1, 64)
	list = append(list, fmt.Sprintf("A month has 30 days. The price of 10,000 KMS calls is %s %s. "+
		"Free calls and the price of the keys themselves are not included.", rep.Currency, price))

	if slices.ContainsFunc(rep.Rows, func(row Row) bool { return row.RevocationWindow < row.TTL }) {
		list = append(list, "Where data becomes unreadable before the TTL is over, "+
			"probes detect the revocation first. While probes get no answer, the TTL is the limit.")
	}

	if slices.ContainsFunc(rep.Rows, warmingUp) {
		list = append(list, "Warming up: this TTL was observed for less than one TTL, "+
			"so its figures include first accesses and are upper bounds.")
	}
	if rep.SampleRate < 1 {
		list = append(list, fmt.Sprintf("Estimated from a sample of one data key in %s, now %s of them. "+
			"Expect errors of a few percent, and of about ten percent for the shortest TTLs, "+
			"where few objects cause most of the calls.",
			webpage.Grouped(int64(math.Round(1/rep.SampleRate))), webpage.Grouped(int64(rep.SampledBlobs))))
	} else {
		list = append(list, "All data keys were observed.")
	}

	return append(list,
		"“No cache” is for comparison: one KMS call at the start of each access, and none during it.",
		"Evictions are not simulated: dek_cache.max_entries must be large enough for the data keys in memory.",
		"The figures are for this process. Each replica makes its own KMS calls.")
}

func money(x float64) string {
	cents := int64(math.Round(x * 100))
	if cents == 0 && x > 0 {
		return "< 0.01"
	}
	return fmt.Sprintf("%s.%02d", webpage.Grouped(cents/100), cents%100)
}

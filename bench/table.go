package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// printCosts prints the table of costs and goals.
func (all *comparison) printCosts(w io.Writer) {
	head := []string{"CPU of the proxy"}
	for _, t := range all.targets {
		head = append(head, t.name)
		if t.name == nginxName {
			head = append(head, "nginx + AES-GCM")
		}
	}
	printRow(w, append(head, "ratio: best / median", "goal", "")...)
	printRule(w, len(head)+3)

	for _, c := range all.cells {
		row := []string{c.name}
		for _, t := range all.targets {
			row = append(row, formatCost(c, best(all.costs(c, t.name, passes{}))))
			if t.name == nginxName && c.bulk() {
				row = append(row, formatCost(c, best(all.costs(c, t.name, passes{aes: true}))))
			} else if t.name == nginxName {
				row = append(row, "")
			}
		}

		ratios := all.ratios(c)
		printRow(w, append(row,
			number(best(ratios))+" / "+number(median(ratios)),
			"≤ "+number(c.goal.limit)+" × "+c.goal.of.String(),
			verdict(best(ratios), median(ratios), c.goal.limit))...)
	}
	fmt.Fprintln(w)
}

// String describes what a cost is compared with.
func (r reference) String() string {
	parts := []string{r.target}
	if r.cell != "" {
		parts[0] = "our " + r.cell
	}
	if r.plus.aes {
		parts = append(parts, "AES-GCM")
	}
	if r.plus.crc {
		parts = append(parts, "CRC32")
	}
	if len(parts) > 1 {
		return "(" + strings.Join(parts, " + ") + ")"
	}
	return parts[0]
}

// verdict says whether a goal is reached. The median decides; the best round
// shows what a quieter machine might give.
func verdict(best, median, limit float64) string {
	switch {
	case math.IsNaN(median):
		return "not measured"
	case median <= limit:
		return "**reached**"
	case best <= limit:
		return "**not**: " + over(median, limit) + " in the median, reached in the best round"
	default:
		return "**not**: " + over(median, limit) + " in the median, " + over(best, limit) + " in the best round"
	}
}

// over says by how much a value is above a limit.
func over(value, limit float64) string {
	percent := (value/limit - 1) * 100
	if percent < 1 {
		return fmt.Sprintf("+%.2f %%", percent)
	}
	return fmt.Sprintf("+%.0f %%", percent)
}

// verdictOf says whether a goal is reached that was measured once.
func verdictOf(value, limit float64) string {
	switch {
	case math.IsNaN(value):
		return "not measured"
	case value <= limit:
		return "**reached**"
	default:
		return "**not**: " + over(value, limit)
	}
}

// printSpeed prints throughput, latency and allocations.
func (all *comparison) printSpeed(w io.Writer) {
	head := []string{"throughput; p50 / p99 in ms"}
	for _, t := range all.targets {
		head = append(head, t.name)
	}
	printRow(w, append(head, "our allocations a request")...)
	printRule(w, len(head)+1)

	for _, c := range all.cells {
		row := []string{c.name}
		for _, t := range all.targets {
			row = append(row, all.speed(c, t))
		}
		printRow(w, append(row, number(all.mallocs(c)))...)
	}
	fmt.Fprintln(w)
}

// speed describes all rounds of a cell at a target together.
func (all *comparison) speed(c cell, t *target) string {
	var took time.Duration
	var bytes int64
	var latencies []time.Duration
	for _, one := range all.rounds {
		s := one.samples[sampleName{c.name, t.name}]
		took += s.took
		bytes += s.bytes
		latencies = append(latencies, s.latencies...)
	}
	if len(latencies) == 0 {
		return ""
	}

	rate := number(float64(len(latencies))/took.Seconds()) + "/s"
	if c.bulk() {
		rate = number(float64(bytes)/(1<<20)/took.Seconds()) + " MiB/s"
	}
	p50, p99 := percentiles(latencies)
	return fmt.Sprintf("%s; %s / %s", rate, milliseconds(p50), milliseconds(p99))
}

// mallocs returns our least allocations per request; NaN if unknown.
func (all *comparison) mallocs(c cell) float64 {
	var counts []float64
	for _, one := range all.rounds {
		if s, ok := one.samples[sampleName{c.name, oursName}]; ok && s.mallocs >= 0 {
			counts = append(counts, float64(s.mallocs)/float64(len(s.latencies)))
		}
	}
	return best(counts)
}

func printRow(w io.Writer, row ...string) { fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | ")) }

func printRule(w io.Writer, columns int) { fmt.Fprintln(w, "|"+strings.Repeat("---|", columns)) }

func formatCost(c cell, cost float64) string {
	switch {
	case math.IsNaN(cost):
		return ""
	case c.bulk():
		return strconv.FormatFloat(cost, 'f', 2, 64) + " s/GiB"
	default:
		return number(cost) + " µs"
	}
}

// number formats a number with at least three digits.
func number(x float64) string {
	switch {
	case math.IsNaN(x):
		return "?"
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	default:
		return strconv.FormatFloat(x, 'f', 2, 64)
	}
}

func milliseconds(d time.Duration) string { return number(d.Seconds() * 1000) }

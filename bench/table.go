package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

func printHead(targets []*target) {
	fmt.Print("| | clients |")
	for _, t := range targets {
		fmt.Printf(" %s MiB/s | req/s | p50 / p99 ms |", t.name)
	}
	for _, t := range targets[1:] {
		fmt.Printf(" %s CPU s/GiB | µs/req | peak MiB |", t.name)
	}
	fmt.Print(" throughput | p50 | p99 | CPU |\n|---|---:|")
	fmt.Print(strings.Repeat("---:|", 3*len(targets)+3*len(targets[1:])+4), "\n")
}

// printRow prints a row. It ends with the ratios of the last target to the
// one before: cmekproxy to the plain reverse proxy.
func printRow(name string, clients int, results []result) {
	fmt.Printf("| %s | %d |", name, clients)
	for _, r := range results {
		if r.err != nil {
			fmt.Print(" **FAILED** | | |")
			continue
		}
		p50, p99 := r.percentiles()
		fmt.Printf(" %s | %s | %s / %s |", short(r.throughput()), short(r.requests()), ms(p50), ms(p99))
	}

	for _, r := range results[1:] {
		if r.err != nil {
			fmt.Print(" | | |")
			continue
		}
		fmt.Printf(" %.2f | %s | %.0f |", r.cpuPerGiB(), short(r.cpuPerRequest()), float64(r.peakRSS)/(1<<20))
	}

	plain, ours := results[len(results)-2], results[len(results)-1]
	if plain.err != nil || ours.err != nil {
		fmt.Println(" | | | |")
		return
	}

	plain50, plain99 := plain.percentiles()
	ours50, ours99 := ours.percentiles()
	fmt.Printf(
		" %s | %s | %s | %s |\n",
		ratio(ours.throughput(), plain.throughput()),
		ratio(ours50.Seconds(), plain50.Seconds()),
		ratio(ours99.Seconds(), plain99.Seconds()),
		ratio(ours.cpuPerRequest(), plain.cpuPerRequest()),
	)
}

// ratio returns a/b. CPU times have a resolution of 10 ms, so b may be zero
// in a short run.
func ratio(a, b float64) string {
	if b == 0 {
		return "?"
	}
	return strconv.FormatFloat(a/b, 'f', 2, 64)
}

// short formats a number with at least three digits.
func short(x float64) string {
	switch {
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	default:
		return strconv.FormatFloat(x, 'f', 2, 64)
	}
}

func ms(d time.Duration) string { return short(d.Seconds() * 1000) }

func formatSize(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	default:
		return fmt.Sprintf("%d KiB", n>>10)
	}
}

// Command bench compares cmekproxy with the bare store and with a plain reverse proxy, in one run on loopback. Cells are
// measured in turns, round by round, so that the noise of a shared machine hits all alike; look at the ratios.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"time"
)

type options struct {
	bin     string
	cell    time.Duration
	rounds  int
	clients string
	sizes   string
	memory  time.Duration
	full    bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var o options
	flag.StringVar(&o.bin, "bin", ".cache/bin", "`DIRECTORY` of proxy and versitygw")
	flag.DurationVar(&o.cell, "time", 2*time.Second, "time of a cell in a round")
	flag.IntVar(&o.rounds, "rounds", 2, "rounds")
	flag.StringVar(&o.clients, "clients", "1,8,32", "numbers of concurrent clients; empty for no comparison")
	flag.StringVar(&o.sizes, "sizes", "4KiB,1MiB,64MiB", "object sizes")
	flag.DurationVar(&o.memory, "memory", 20*time.Second, "time for which 64 transfers of 1 GiB each way run, to see the memory they take; 0 for none")
	flag.BoolVar(&o.full, "full", false, "run the 64 transfers of 1 GiB to their end, whatever time it takes")
	flag.Parse()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

func run(ctx context.Context, o options) error {
	lab, err := newLab(ctx, o.bin)
	if err != nil {
		return err
	}
	defer lab.close()
	fmt.Printf("%s, %d cores, %s, %s\n\n", cpuModel(), runtime.NumCPU(), runtime.Version(), time.Now().UTC().Format("2006-01-02"))
	if o.clients != "" {
		if err := compare(ctx, lab, o); err != nil {
			return err
		}
	}
	if o.memory > 0 || o.full {
		return memory(ctx, lab, o)
	}
	return nil
}

// compare measures every cell against every target and prints the table.
func compare(ctx context.Context, lab *lab, o options) error {
	var sizes, clients []int64
	for text := range strings.SplitSeq(o.sizes, ",") {
		n, err := parseSize(text)
		if err != nil {
			return err
		}
		sizes = append(sizes, n)
	}
	for text := range strings.SplitSeq(o.clients, ",") {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return err
		}
		clients = append(clients, n)
	}
	printHead(lab.targets)
	for _, method := range []string{"GET", "PUT"} {
		for _, size := range sizes {
			for _, n := range clients {
				c := cell{method: method, size: size, clients: int(n)}
				results := make([]result, len(lab.targets))
				for range o.rounds {
					for i, target := range lab.targets {
						r, err := c.measure(ctx, target, o.cell)
						if err != nil {
							return fmt.Errorf("%s %s with %d clients at %s: %w", method, formatSize(size), n, target.name, err)
						}
						results[i].add(r)
					}
				}
				printRow(c, results)
			}
		}
	}
	fmt.Println()
	return nil
}

func parseSize(text string) (int64, error) {
	for unit, factor := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if number, ok := strings.CutSuffix(text, unit); ok {
			n, err := strconv.ParseInt(number, 10, 64)
			return n * factor, err
		}
	}
	return 0, fmt.Errorf("size %q has no unit", text)
}

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

func printHead(targets []*target) {
	fmt.Print("| | clients |")
	for _, t := range targets {
		fmt.Printf(" %s MiB/s | p50 / p99 ms |", t.name)
	}
	for _, t := range targets[1:] {
		fmt.Printf(" %s CPU s/GiB | us/request |", t.name)
	}
	fmt.Print(" throughput | CPU |\n|---|---|")
	fmt.Print(strings.Repeat("---|", 2*len(targets)+2*len(targets[1:])+2), "\n")
}

// printRow ends with the ratios of the last target to the one before: cmekproxy to the plain reverse proxy.
func printRow(c cell, results []result) {
	fmt.Printf("| %s %s | %d |", c.method, formatSize(c.size), c.clients)
	for _, r := range results {
		p50, p99 := r.percentiles()
		fmt.Printf(" %.0f | %s / %s |", r.throughput(), ms(p50), ms(p99))
	}
	for _, r := range results[1:] {
		fmt.Printf(" %.2f | %.0f |", r.cpuPerGiB(), r.cpuPerRequest())
	}
	plain, ours := results[len(results)-2], results[len(results)-1]
	fmt.Printf(" %.2f | %.2f |\n", ours.throughput()/plain.throughput(), ours.cpuPerRequest()/plain.cpuPerRequest())
}

func ms(d time.Duration) string { return strconv.FormatFloat(d.Seconds()*1000, 'f', 1, 64) }

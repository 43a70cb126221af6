// Command bench compares cmekproxy with the bare store and with a plain
// reverse proxy, in one run on loopback. Targets take turns in each round,
// so that noise on a shared machine affects all of them equally. Compare the
// ratios, not the absolute figures.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	bin     string
	plain   string
	cell    time.Duration
	rounds  int
	clients []int64
	sizes   []int64
	large   int64
	memory  time.Duration
	full    bool
	rate    int64
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	o, err := parse()
	if err != nil {
		return err
	}
	if flag.NArg() == 3 && flag.Arg(0) == reverseProxyCommand {
		return serveReverseProxy(ctx, flag.Arg(1), flag.Arg(2))
	}

	if flag.NArg() > 0 {
		return errors.New("there are flags only; see -h")
	}

	lab, err := newLab(ctx, o)
	if err != nil {
		return err
	}
	defer lab.close()

	fmt.Printf(
		"%s, %d cores, %s, %s, load average %s\n",
		cpuModel(),
		runtime.NumCPU(),
		runtime.Version(),
		time.Now().UTC().Format("2006-01-02"),
		loadAverage(),
	)
	fmt.Printf("%s; the store keeps its objects in %s\n\n", lab.plainVersion, lab.storeDir)
	if len(o.clients) > 0 || o.large > 0 {
		err = compare(ctx, lab, o)
	}
	if ctx.Err() == nil && (o.memory > 0 || o.full) {
		err = errors.Join(err, memory(ctx, lab, o))
	}

	if ctx.Err() == nil {
		err = errors.Join(err, kmsCalls(ctx, lab))
	}
	return err
}

// parse reads the flags. Explicit flags override the values that -short
// sets.
func parse() (options, error) {
	var o options
	var clients, sizes, large string
	var short bool
	flag.BoolVar(
		&short,
		"short",
		false,
		"a look of less than a minute: -time 200ms -clients 1,8 -sizes 4KiB,1MiB,16MiB -multipart 128MiB -memory 5s",
	)
	flag.StringVar(&o.bin, "bin", ".cache/bin", "`DIRECTORY` of proxy and versitygw")
	flag.StringVar(
		&o.plain,
		"plain",
		"auto",
		"the plain reverse proxy: nginx, go (net/http/httputil), or auto, nginx if there is one",
	)
	flag.DurationVar(&o.cell, "time", 2*time.Second, "time of a cell in a round, after a warm-up of a quarter of it")
	flag.IntVar(&o.rounds, "rounds", 2, "rounds")
	flag.StringVar(&clients, "clients", "1,8,32", "numbers of concurrent clients; empty for no comparison")
	flag.StringVar(&sizes, "sizes", "4KiB,1MiB,64MiB", "object sizes")
	flag.StringVar(
		&large,
		"multipart",
		"1GiB",
		"size of an object that is uploaded and read in parts of 8 MiB, 8 at a time; empty for none",
	)
	flag.DurationVar(
		&o.memory,
		"memory",
		20*time.Second,
		"time for which 64 transfers of 1 GiB each way run, to see the memory they take; 0 for none",
	)
	flag.BoolVar(&o.full, "full", false, "run the 64 transfers of 1 GiB to their end, whatever time it takes")
	flag.Int64Var(
		&o.rate,
		"rate",
		16,
		"MiB/s of each of the 64 transfers at most, so that none is done before the others",
	)
	flag.Parse()
	if short {
		given := make(map[string]bool)
		flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
		for name, value := range map[string]string{
			"time": "200ms", "clients": "1,8", "sizes": "4KiB,1MiB,16MiB", "multipart": "128MiB", "memory": "5s",
		} {
			if given[name] {
				continue
			}
			if err := flag.Set(name, value); err != nil {
				return o, err
			}
		}
	}

	if o.rounds < 1 || o.rate < 1 {
		return o, errors.New("-rounds and -rate are 1 or more")
	}

	var err error
	if o.clients, err = parseList(
		clients,
		func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) },
	); err != nil {
		return o, err
	}
	if large != "" {
		if o.large, err = parseSize(large); err != nil {
			return o, err
		}
	}

	o.sizes, err = parseList(sizes, parseSize)
	return o, err
}

func parseList(text string, one func(string) (int64, error)) ([]int64, error) {
	var list []int64
	if text == "" {
		return nil, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		n, err := one(item)
		if err != nil {
			return nil, err
		}
		if n < 1 {
			return nil, fmt.Errorf("%s is too small", item)
		}
		list = append(list, n)
	}
	return list, nil
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

// compare measures every cell against every target and prints the table. If
// a cell fails, it still measures the others.
func compare(ctx context.Context, lab *lab, o options) error {
	printHead(lab.targets)
	var failures []error
	for _, row := range rows(o) {
		results := compareRow(ctx, row, lab.targets, o)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		name, clients := row.label()
		printRow(name, clients, results)
		for i, r := range results {
			if r.err != nil {
				failures = append(
					failures,
					fmt.Errorf("%s with %d clients at %s: %w", name, clients, lab.targets[i].name, r.err),
				)
			}
		}
	}

	fmt.Println()
	return errors.Join(failures...)
}

// row is a line of the table.
type row interface {
	label() (name string, clients int)
	// measure loads a target for a time, or with one fixed task. store is
	// the bare store.
	measure(ctx context.Context, t, store *target, length time.Duration) result
}

func rows(o options) []row {
	var all []row
	for _, method := range []string{"GET", "PUT"} {
		for _, size := range o.sizes {
			for _, n := range o.clients {
				all = append(all, cell{method: method, size: size, clients: int(n)})
			}
		}
	}
	if o.large > 0 {
		all = append(
			all,
			partsUpload{o.large},
			partsDownload{o.large},
			randomReads{o.large, 4 << 10},
			randomReads{o.large, 1 << 20},
		)
	}
	return all
}

// compareRow measures the row against all targets. Every other round runs in
// reverse order.
func compareRow(ctx context.Context, c row, targets []*target, o options) []result {
	results := make([]result, len(targets))
	order := make([]int, len(targets))
	for i := range order {
		order[i] = i
	}
	for range o.rounds {
		for _, i := range order {
			results[i].add(c.measure(ctx, targets[i], targets[0], o.cell))
		}
		slices.Reverse(order)
	}
	return results
}

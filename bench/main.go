// Command bench measures what cmekproxy costs: side by side with nginx, with
// a plain pass-through of net/http, and with a rival if one is given, in
// front of an origin that keeps objects in memory. Everything runs on
// loopback, each server in a process of its own. It prints Markdown tables
// that say which goals are reached.
//
//	main.go         the flags
//	cells.go        the rows of the table, and the goals
//	compare.go      rounds and ratios
//	load.go         one measurement: request.go, connection.go, metrics.go, proc.go
//	memory.go       resident memory
//	kms.go          the cost of a KMS call
//	overload.go     more requests than can be served
//	table.go        the tables
//	lab.go          the processes: certificate.go, serve.go; peers.md describes rivals
//	origin.go       the origin; originupload.go has its uploads
//	passthrough.go  the pass-through
//	passes.go       AES-GCM and CRC32 alone
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := start(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, args []string) error {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		return serve(ctx, args)
	}
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	return measure(ctx, o, os.Stdout)
}

// options are the settings of a run, from the flags.
type options struct {
	proxy   string        // the program cmekproxy
	length  time.Duration // of a cell in a round
	rounds  int
	clients int
	cells   *regexp.Regexp
	port    int // the first of 30; 0 means any free ones
	memory  memoryLoad
	kms     kmsLoad
	peer    peer

	overload overloadLoad
}

// peer is a rival; see peers.md.
type peer struct {
	name, addr, command string
	access, secret      string
}

func parse(args []string) (o options, err error) {
	var pattern, rival, keys string
	var short bool
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.proxy, "proxy", ".cache/bench/cmekproxy", "`PROGRAM` to measure")
	flags.DurationVar(&o.length, "time", time.Second, "time of a cell in a round, after a warm-up of a quarter of it")
	flags.IntVar(&o.rounds, "rounds", 5, "rounds")
	flags.IntVar(&o.clients, "clients", 8, "concurrent clients")
	flags.StringVar(&pattern, "cells", "", "measure only the cells that match this `REGEXP`; "+
		`"memory", "kms" and "overload" are the names of those parts`)
	flags.IntVar(&o.port, "port", 18400, "first of 30 `PORTS` that are used; 0 for any free ones")
	flags.BoolVar(&short, "short", false, "a look of two minutes: one short round, and a small load for the memory")
	flags.StringVar(&rival, "peer", "", "rival to measure too: `NAME=HOST:PORT`; see bench/peers.md")
	flags.StringVar(&o.peer.command, "peer-command", "", "shell `COMMAND` that starts the rival")
	flags.StringVar(&keys, "peer-keys", clientAccess+":"+clientSecret, "`ACCESS:SECRET` key of the rival's client")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 || o.rounds < 1 || o.clients < 1 {
		return o, errors.New("there are flags only, and -rounds and -clients are 1 or more")
	}

	o.memory, o.kms, o.overload = fullMemoryLoad, fullKMSLoad, fullOverload
	if short {
		o.length, o.rounds, o.memory, o.kms = 200*time.Millisecond, 1, shortMemoryLoad, shortKMSLoad
		o.overload = shortOverload
	}
	if o.cells, err = regexp.Compile(pattern); err != nil {
		return o, err
	}

	if rival != "" {
		var named, keyed bool
		o.peer.name, o.peer.addr, named = strings.Cut(rival, "=")
		o.peer.access, o.peer.secret, keyed = strings.Cut(keys, ":")
		if !named || !keyed || o.peer.command == "" {
			return o, errors.New("-peer NAME=HOST:PORT needs -peer-command, and -peer-keys ACCESS:SECRET")
		}
	}
	return o, nil
}

// measure measures all parts that are selected, and prints their tables to
// w. Each part has processes of its own.
func measure(ctx context.Context, o options, w io.Writer) error {
	selected := selectCells(o.cells)
	memory, kms := o.cells.MatchString("memory"), o.cells.MatchString("kms")
	overload := o.cells.MatchString("overload")
	if len(selected) == 0 && !memory && !kms && !overload {
		return fmt.Errorf("-cells %s matches nothing; bench/cells.go has the names", o.cells)
	}

	fmt.Fprintf(w, "%s, %d cores, %s, %s, load average %s, %d clients, %d rounds of %v\n\n",
		cpuModel(), runtime.NumCPU(), runtime.Version(), time.Now().UTC().Format("2006-01-02 15:04"),
		loadAverage(), o.clients, o.rounds, o.length)

	var failures []error
	if len(selected) > 0 {
		failures = append(failures, measureCells(ctx, o, selected, w))
	}
	if memory && ctx.Err() == nil {
		failures = append(failures, measureMemory(ctx, o, w))
	}
	if kms && ctx.Err() == nil {
		failures = append(failures, measureKMS(ctx, o, w))
	}
	if overload && ctx.Err() == nil {
		failures = append(failures, measureOverload(ctx, o, w))
	}

	fmt.Fprintf(w, "Load average at the end: %s\n", loadAverage())
	return errors.Join(failures...)
}

// measureCells prints what was measured even if a cell failed.
func measureCells(ctx context.Context, o options, selected []cell, w io.Writer) error {
	l, err := newLab(ctx, o)
	if err != nil {
		return err
	}
	defer l.close()

	all, err := compare(ctx, l, selected)
	all.printCosts(w)
	all.printSpeed(w)
	costs := measurePasses()
	fmt.Fprintf(w, "One pass in one thread, in s/GiB: AES-256-GCM seal %.2f, open %.2f, CRC32 %.2f\n\n",
		costs.seal, costs.open, costs.crc)
	return err
}

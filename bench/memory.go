package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"
)

// memoryLoad is the load under which memory is measured.
type memoryLoad struct {
	requests int // GETs of 4 KiB, so that all code has run once
	idle     int // idle connections
	transfer int // GETs, and then PUTs, of a large object at a time
	slow     int // slow GETs of a large object at a time
	slowFor  time.Duration
	after    time.Duration // between the slow GETs and the last look
	settle   time.Duration // before each look
	size     int64         // of a large object
}

var (
	fullMemoryLoad = memoryLoad{
		requests: 4000, idle: 2000, transfer: 64, slow: 1000,
		slowFor: 20 * time.Second, after: 30 * time.Second, settle: time.Second, size: largeObjects,
	}
	shortMemoryLoad = memoryLoad{
		requests: 1000, idle: 500, transfer: 16, slow: 200,
		slowFor: 3 * time.Second, after: 3 * time.Second, settle: time.Second, size: largeObjects,
	}
)

// A slow client reads slowBytes every slowPause.
const (
	slowBytes = 64 << 10
	slowPause = time.Second
)

// The rows of the table.
const (
	idleRow = iota
	perIdleRow
	getsRow
	putsRow
	slowRow
	afterRow
	memoryRows
)

// footprint is the memory of a target, by row, in bytes. NaN means that it
// was not measured.
type footprint [memoryRows]float64

func newFootprint() (f footprint) {
	for row := range f {
		f[row] = math.NaN()
	}
	return f
}

// measureMemory measures the memory of new processes, and prints a table.
func measureMemory(ctx context.Context, o options, w io.Writer) error {
	all, names, err := o.memory.measureAll(ctx, o)
	ours := slices.Index(names, oursName)
	if ours < 0 {
		return err
	}

	printRow(w, append(append([]string{"RSS"}, names...), "goal", "")...)
	printRule(w, len(names)+3)
	for i, row := range o.memory.rows() {
		line := []string{row.name}
		for _, one := range all {
			line = append(line, number(one[i]/row.unit)+row.suffix())
		}
		if row.limit > 0 {
			line = append(line, "≤ "+number(row.limit/row.unit)+row.suffix(), verdictOf(all[ours][i], row.limit))
		} else {
			line = append(line, "", "")
		}
		printRow(w, line...)
	}
	fmt.Fprintln(w)
	return err
}

// measureAll measures all targets, and returns their names too. Connections
// and transfers meet different processes, so that what the one leaves behind
// does not count for the other.
func (m memoryLoad) measureAll(ctx context.Context, o options) (all []footprint, names []string, err error) {
	var failures []error
	for _, part := range []func(context.Context, *target, *footprint) error{m.connections, m.transfers} {
		l, err := newLab(ctx, o)
		if err != nil {
			return all, names, errors.Join(append(failures, err)...)
		}
		for i, t := range l.targets {
			fmt.Fprintf(os.Stderr, "bench: memory of %s\n", t.name)
			if len(all) == i {
				all, names = append(all, newFootprint()), append(names, t.name)
			}
			if err := part(ctx, t, &all[i]); err != nil {
				failures = append(failures, fmt.Errorf("memory of %s: %w", t.name, err))
			}
		}
		l.close()
	}
	return all, names, errors.Join(failures...)
}

// memoryRow describes a row of the table.
type memoryRow struct {
	name  string
	limit float64 // bytes; 0 means that there is no goal
	unit  float64 // bytes
}

func (r memoryRow) suffix() string {
	if r.unit == 1<<10 {
		return " KiB"
	}
	return " MiB"
}

// rows describes the table. The goals of transfers are those of the full
// load.
func (m memoryLoad) rows() []memoryRow {
	transfers := fmt.Sprintf("%d %%s of %d MiB", m.transfer, m.size>>20)
	rows := []memoryRow{
		idleRow:    {"idle", maxIdleRSS, 1 << 20},
		perIdleRow: {fmt.Sprintf("%d idle connections, each", m.idle), maxPerIdleConn, 1 << 10},
		getsRow:    {fmt.Sprintf(transfers, "GETs"), maxGetRSS, 1 << 20},
		putsRow:    {fmt.Sprintf(transfers, "PUTs"), 0, 1 << 20},
		slowRow:    {fmt.Sprintf("%d slow GETs of %d MiB", m.slow, m.size>>20), maxSlowRSS, 1 << 20},
		afterRow:   {fmt.Sprintf("%v after them", m.after), maxAfterRSS, 1 << 20},
	}
	if m != fullMemoryLoad {
		rows[getsRow].limit, rows[slowRow].limit, rows[afterRow].limit = 0, 0, 0
	}
	return rows
}

// connections measures an idle process, and what a connection costs that has
// served one request and waits for the next. Requests before it have brought
// the heap to its size.
func (m memoryLoad) connections(ctx context.Context, t *target, found *footprint) error {
	pids := t.plain.pids()
	time.Sleep(m.settle)
	found[idleRow] = float64(rss(pids))

	c := cells[0]
	if err := c.prepare(ctx, t); err != nil {
		return err
	}
	if err := m.repeat(ctx, t, c, m.requests); err != nil {
		return err
	}
	time.Sleep(m.settle)
	before := rss(pids)

	for range m.idle {
		w, err := c.newWorker(ctx, t, t.plain, 0)
		if err != nil {
			return err
		}
		defer w.conn.close()
		if err := w.once(); err != nil {
			return err
		}
	}
	time.Sleep(m.settle)
	found[perIdleRow] = float64(rss(pids)-before) / float64(m.idle)
	return nil
}

// repeat does a request n times with one connection.
func (m memoryLoad) repeat(ctx context.Context, t *target, c cell, n int) error {
	w, err := c.newWorker(ctx, t, t.plain, 0)
	if err != nil {
		return err
	}
	defer w.conn.close()
	for range n {
		if err := w.once(); err != nil {
			return err
		}
	}
	return nil
}

// transfers measures the peaks of transfers, and what is left after them.
func (m memoryLoad) transfers(ctx context.Context, t *target, found *footprint) error {
	pids, path := t.plain.pids(), "/"+t.bucket+"/large"
	if err := t.store(ctx, []string{path}, m.size); err != nil {
		return err
	}

	get := message{method: http.MethodGet, path: path}
	put := uploadMessage("/"+t.bucket+sinkSuffix+"/large", m.size, nil)
	whole := func(c *connection, r *request) error { _, err := c.do(r, nil); return err }
	slowly := func(c *connection, r *request) error { return c.readSlowly(r, m.slowFor) }
	for _, step := range []struct {
		row     int
		clients int
		message message
		do      func(*connection, *request) error
	}{
		{getsRow, m.transfer, get, whole},
		{putsRow, m.transfer, put, whole},
		{slowRow, m.slow, get, slowly},
	} {
		resetPeakRSS(pids)
		if err := together(ctx, t, step.clients, step.message, step.do); err != nil {
			return err
		}
		found[step.row] = float64(peakRSS(pids))
	}

	time.Sleep(m.after)
	found[afterRow] = float64(rss(pids))
	return nil
}

// together has many clients do a request each at the same time.
func together(
	ctx context.Context, t *target, clients int, m message, do func(*connection, *request) error,
) error {
	r, err := t.sign(ctx, t.plain, m)
	if err != nil {
		return err
	}

	var all sync.WaitGroup
	errs := make([]error, clients)
	for n := range clients {
		all.Go(func() {
			conn, err := t.plain.dial(ctx)
			if err != nil {
				errs[n] = err
				return
			}
			defer conn.close()
			errs[n] = do(conn, r)
			for errors.Is(errs[n], errSlowDown) { // as SDKs do
				time.Sleep(slowPause)
				errs[n] = do(conn, r)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// readSlowly reads a little of a response at a time, and gives up after a
// while.
func (c *connection) readSlowly(r *request, length time.Duration) error {
	if conn, ok := c.conn.(*net.TCPConn); ok { // so that the kernel does not read ahead
		if err := conn.SetReadBuffer(slowBytes); err != nil {
			return err
		}
	}
	if err := c.send(r); err != nil {
		return err
	}
	resp, err := c.readHead()
	if err == nil && resp.status == http.StatusServiceUnavailable {
		_, err = c.readBody(r.method, resp, nil)
		return errors.Join(errSlowDown, err)
	}
	if err == nil && resp.status != http.StatusOK {
		err = fmt.Errorf("answered %d", resp.status)
	}

	for start := time.Now(); err == nil && time.Since(start) < length; time.Sleep(slowPause) {
		_, err = c.in.Discard(slowBytes)
	}
	return err
}

package e2e

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
)

// report is the table of results.
type report struct {
	mu      sync.Mutex
	columns []string
	rows    []string
	cells   map[[2]string]string // row, column
	notes   []string
}

// run runs one check as a subtest and records its result. A check that does
// not apply calls notApplicable.
func (r *report) run(t *testing.T, column, row string, check func(*testing.T)) {
	t.Helper()
	t.Run(row, func(t *testing.T) {
		defer func() {
			result := "ok"
			switch {
			case t.Failed():
				result = "FAIL"
			case t.Skipped():
				result = "-"
			}
			r.set(row, column, result)
		}()
		check(t)
	})
}

func (r *report) result(row, column string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cells[[2]string{row, column}]
}

func (r *report) set(row, column, result string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cells == nil {
		r.cells = make(map[[2]string]string)
	}
	if !slices.Contains(r.rows, row) {
		r.rows = append(r.rows, row)
	}
	if r.cells[[2]string{row, column}] != "FAIL" { // a row may have several steps
		r.cells[[2]string{row, column}] = result
	}
}

// addColumn adds a column now, to fix the order: the columns run in
// parallel.
func (r *report) addColumn(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.columns = append(r.columns, name)
}

func (r *report) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if note := fmt.Sprintf(format, args...); !slices.Contains(r.notes, note) {
		r.notes = append(r.notes, note)
	}
}

// print writes one table for each endpoint. A column is named "client
// endpoint".
func (r *report) print(w io.Writer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var endpoints []string
	for _, column := range r.columns {
		if _, e, _ := strings.Cut(column, " "); !slices.Contains(endpoints, e) {
			endpoints = append(endpoints, e)
		}
	}

	for _, e := range endpoints {
		fmt.Fprintf(w, "\n%-14s", e)
		for _, column := range r.columns {
			if name, of, _ := strings.Cut(column, " "); of == e {
				fmt.Fprintf(w, "%-10s", name)
			}
		}
		for _, row := range r.rows {
			line, any := "", false
			for _, column := range r.columns {
				if _, of, _ := strings.Cut(column, " "); of != e {
					continue
				}
				cell := r.cells[[2]string{row, column}]
				any = any || cell != ""
				if cell == "" {
					cell = "-"
				}
				line += fmt.Sprintf("%-10s", cell)
			}
			if any {
				fmt.Fprintf(w, "\n%-14s%s", row, strings.TrimRight(line, " "))
			}
		}
		fmt.Fprintln(w)
	}

	for _, note := range r.notes {
		fmt.Fprintln(w, "note: "+note)
	}
}

func notApplicable(t *testing.T) {
	t.Helper()
	t.Skip("the client cannot do this")
}

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
)

// comparison holds what was measured: for each round the samples by cell and
// target.
type comparison struct {
	cells   []cell
	targets []*target
	rounds  []round
}

type round struct {
	passes  passCosts
	samples map[sampleName]sample
}

type sampleName struct{ cell, target string }

// compare measures the cells at all targets. In each round, the targets take
// turns at each cell, so that noise on a shared machine meets all of them. A
// cell that fails is left out, and reported as an error. If ctx ends, the
// rounds before are returned.
func compare(ctx context.Context, l *lab, cells []cell) (*comparison, error) {
	all := &comparison{cells: cells, targets: l.targets}
	var failures []error
	for n := range l.o.rounds {
		one := round{passes: measurePasses(), samples: make(map[sampleName]sample)}
		for _, c := range cells {
			fmt.Fprintf(os.Stderr, "bench: round %d of %d: %s\n", n+1, l.o.rounds, c.name)
			for _, t := range l.targets {
				if _, ok := c.endpoint(t); !ok {
					continue
				}
				s, err := c.measure(ctx, t, l.o.clients, l.o.length)
				if ctx.Err() != nil {
					return all, errors.Join(append(failures, ctx.Err())...)
				}
				if err != nil {
					failures = append(failures, fmt.Errorf("%s at %s: %w", c.name, t.name, err))
					continue
				}
				one.samples[sampleName{c.name, t.name}] = s
			}
		}
		all.rounds = append(all.rounds, one)
	}
	return all, errors.Join(failures...)
}

// selectCells returns the cells whose names match, and those that they are
// compared with.
func selectCells(pattern *regexp.Regexp) []cell {
	wanted := make(map[string]bool)
	for _, c := range cells {
		if pattern.MatchString(c.name) {
			wanted[c.name] = true
			wanted[c.goal.of.cell] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(cells), func(c cell) bool { return !wanted[c.name] })
}

// costs returns the cost of a cell at a target in each round in which it was
// measured.
func (all *comparison) costs(c cell, target string, plus passes) (costs []float64) {
	for _, one := range all.rounds {
		if s, ok := one.samples[sampleName{c.name, target}]; ok {
			costs = append(costs, s.cost(c)+one.passes.of(plus, c))
		}
	}
	return costs
}

// ratios returns our cost divided by that of the goal's reference, in each
// round in which both were measured.
func (all *comparison) ratios(c cell) (ratios []float64) {
	other := c
	if c.goal.of.cell != "" {
		i := slices.IndexFunc(all.cells, func(o cell) bool { return o.name == c.goal.of.cell })
		other = all.cells[i] // selectCells has added it
	}

	for _, one := range all.rounds {
		ours, ok := one.samples[sampleName{c.name, oursName}]
		base, found := one.samples[sampleName{other.name, c.goal.of.target}]
		if ok && found {
			ratios = append(ratios, ours.cost(c)/(base.cost(other)+one.passes.of(c.goal.of.plus, other)))
		}
	}
	return ratios
}

// best returns the least value. NaN means that there is none.
func best(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	return slices.Min(values)
}

// median returns the median. NaN means that there is none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

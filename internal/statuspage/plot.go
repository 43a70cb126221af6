package statuspage

import (
	"fmt"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/webpage"
)

// Positions in a plot, in pixels of its view box.
const (
	plotWidth  = 470
	plotHeight = 150
	plotLeft   = 70
	plotRight  = 462
	plotTop    = 12
	plotBottom = 122
	timeLine   = 142
)

// plot is the geometry of an SVG: the course of some values.
type plot struct {
	Title       string
	Description string // alternative text
	Lines       []line
	Most        string // at the upper end of the scale
	Begin       string // at the left end
}

// line is the course of one value. The first of a plot is an area.
type line struct {
	Class  string // its style
	Name   string
	Value  string // the last one
	Points string // of a polyline
	Area   string // of a polygon
	Shown  bool   // there is something to see
}

// series is a value of each point.
type series struct {
	class, name string
	of          func(Point) float64
}

// unit is how the values of a plot are written, and the factor from one
// named unit to the next.
type unit struct {
	words func(float64) string
	step  float64
}

var (
	numbers = unit{webpage.Number, 10}
	bytes   = unit{webpage.Bytes, 1024}
)

// newPlot returns a plot of series with the same unit.
func newPlot(title string, points []Point, u unit, list ...series) plot {
	most := 0.0
	for _, s := range list {
		most = max(most, mostIn(points, s.of))
	}
	scale, words := u.roundUp(most), u.words

	out := plot{Title: title, Most: words(scale), Begin: "now"}
	var text strings.Builder
	if len(points) > 0 {
		first, last := points[0], points[len(points)-1]
		out.Begin = webpage.Duration(last.Time.Sub(first.Time).Round(time.Second)) + " ago"
	}
	for _, s := range list {
		l := newLine(s, points, scale)
		if len(points) > 0 {
			l.Value = words(s.of(points[len(points)-1]))
		}
		fmt.Fprintf(&text, "%s: now %s, at most %s. ", s.name, l.Value, words(mostIn(points, s.of)))
		out.Lines = append(out.Lines, l)
	}
	out.Description = strings.TrimSpace(text.String())
	return out
}

func mostIn(points []Point, of func(Point) float64) (most float64) {
	for _, p := range points {
		most = max(most, of(p))
	}
	return most
}

func newLine(s series, points []Point, scale float64) line {
	l := line{Class: s.class, Name: s.name, Value: "–", Shown: len(points) > 1 && mostIn(points, s.of) > 0}
	if !l.Shown {
		return l
	}

	first, last := points[0].Time, points[len(points)-1].Time
	var text strings.Builder
	for _, p := range points {
		x := plotLeft + float64(plotRight-plotLeft)*p.Time.Sub(first).Seconds()/last.Sub(first).Seconds()
		y := plotBottom - float64(plotBottom-plotTop)*s.of(p)/scale
		fmt.Fprintf(&text, "%.1f,%.1f ", x, y)
	}
	l.Points = strings.TrimSpace(text.String())
	l.Area = fmt.Sprintf("%d,%d %s %d,%d", plotLeft, plotBottom, l.Points, plotRight, plotBottom)
	return l
}

// roundUp returns the end of a scale to x: 1, 2 or 5, times a power of ten,
// times a named unit. It is 1 for 0.
func (u unit) roundUp(x float64) float64 {
	named := 1.0
	for x/named >= u.step {
		named *= u.step
	}
	for power := named; ; power *= 10 {
		for _, step := range []float64{1, 2, 5} {
			if x <= step*power*(1+1e-9) {
				return step * power
			}
		}
	}
}

// perSecond returns the rate of a count.
func perSecond(of func(Point) float64) func(Point) float64 {
	return func(p Point) float64 { return of(p) / p.Seconds }
}

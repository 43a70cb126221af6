package advisor

import (
	"fmt"
	"math"
	"strings"
)

// The places of the plot, in pixels of its view box: bars of the KMS calls
// above, dots of the hit ratio below, and a line of text each for TTL and
// revocation window.
const (
	plotWidth   = 960
	plotHeight  = 448
	plotLeft    = 104 // the heads of the lines are left of it
	barsTop     = 56
	barsBottom  = 260
	ratioTop    = 310 // of 100 %
	ratioBottom = 372 // of 0 %
	ttlLine     = 408
	windowLine  = 432
)

// plot is the geometry of the SVG. The TTLs are at even distances, as on a
// logarithmic scale that also has a 0.
type plot struct {
	Width, Height int
	Description   string // for those who do not see it
	Heads         []head
	Grid          []gridLine
	Columns       []column
	Line          string // the points of the hit ratios
}

type head struct {
	Y    int
	Text string
}

type gridLine struct{ Left, Right, Y int }

type column struct {
	viewRow
	Left, Width, Middle                  int
	BarLeft, BarTop, BarWidth, BarHeight int
	CallsY, RatioY, RatioTextY           int
	TTLY, WindowY                        int
}

func newPlot(rows []Row, words []viewRow) plot {
	p := plot{
		Width: plotWidth, Height: plotHeight,
		Heads: []head{
			{barsBottom, "KMS calls/s"}, {ratioBottom, "Hit ratio"}, {ttlLine, "TTL"}, {windowLine, "Dark within"},
		},
		Grid: []gridLine{{plotLeft, plotWidth, barsBottom}, {plotLeft, plotWidth, ratioBottom}},
	}

	highest := 0.0
	for _, row := range rows {
		highest = max(highest, row.CallsPerSecond)
	}

	var text, line strings.Builder
	for i, row := range rows {
		c := column{viewRow: words[i], TTLY: ttlLine, WindowY: windowLine}
		c.Width = (plotWidth - plotLeft) / len(rows)
		c.Left = plotLeft + i*c.Width
		c.Middle = c.Left + c.Width/2
		c.BarWidth = c.Width / 2
		c.BarLeft = c.Middle - c.BarWidth/2

		if highest > 0 {
			c.BarHeight = max(2, scaled(row.CallsPerSecond/highest, barsBottom-barsTop))
		}

		c.BarTop = barsBottom - c.BarHeight
		c.CallsY = c.BarTop - 8
		c.RatioY = ratioBottom - scaled(row.HitRatio, ratioBottom-ratioTop)
		c.RatioTextY = c.RatioY - 12
		p.Columns = append(p.Columns, c)
		fmt.Fprintf(&line, "%d,%d ", c.Middle, c.RatioY)

		fmt.Fprintf(&text, "%s: %s KMS calls per second, hit ratio %s, dark within %s", c.TTL, c.Calls, c.HitRatio,
			c.Window)
		if c.Current {
			text.WriteString("; in force")
		}

		text.WriteString(". ")
	}

	p.Line = strings.TrimSpace(line.String())
	p.Description = strings.TrimSpace(text.String())
	return p
}

func scaled(part float64, length int) int { return int(math.Round(part * float64(length))) }

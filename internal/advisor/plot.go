package advisor

import (
	"fmt"
	"math"
	"strings"
)

// Positions in the plot, in pixels of its view box. Bars for the KMS calls
// are above points for the hit ratio, with two lines of text below for TTL
// and revocation window.
const (
	plotWidth   = 960
	plotHeight  = 448
	plotLeft    = 104 // the headings are left of it
	barsTop     = 56
	barsBottom  = 260
	ratioTop    = 310 // at 100 %
	ratioBottom = 372 // at 0 %
	ttlLine     = 408
	windowLine  = 432
)

// plot is the geometry of the SVG. TTLs have equal distances, like a
// logarithmic scale that includes 0.
type plot struct {
	Width, Height int
	Description   string // alternative text
	Heads         []head
	Grid          []gridLine
	Columns       []column
	Line          string // points of the hit ratios
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
			{barsBottom, "KMS calls/s"}, {ratioBottom, "Hit ratio"}, {ttlLine, "TTL"}, {windowLine, "Unreadable in"},
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

		fmt.Fprintf(&text, "%s: %s KMS calls per second, hit ratio %s, unreadable within %s",
			c.TTL, c.Calls, c.HitRatio, c.Window)
		if c.Current {
			text.WriteString("; current")
		}

		text.WriteString(". ")
	}

	p.Line = strings.TrimSpace(line.String())
	p.Description = strings.TrimSpace(text.String())
	return p
}

func scaled(part float64, length int) int { return int(math.Round(part * float64(length))) }

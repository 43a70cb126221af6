package webpage

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration formats a duration: with milliseconds below a minute, in minutes
// above an hour.
func Duration(d time.Duration) string {
	if d <= 0 {
		return "0 s"
	}
	if d < time.Minute && d%time.Second != 0 {
		return strconv.FormatFloat(d.Round(time.Millisecond).Seconds(), 'f', -1, 64) + " s"
	}

	d = d.Round(time.Second)
	if d > time.Hour {
		d = d.Round(time.Minute)
	}

	var words []string
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}} {
		if n := d / unit.size; n > 0 {
			words = append(words, strconv.FormatInt(int64(n), 10)+" "+unit.name)
			d %= unit.size
		}
	}

	return strings.Join(words, " ")
}

// Number formats a number with three digits, or more if the integer part is
// longer.
func Number(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x < 0.001:
		return "< 0.001"
	case x >= 99.95:
		return Grouped(int64(math.Round(x)))
	case x >= 9.995:
		return strconv.FormatFloat(x, 'f', 1, 64)
	case x >= 0.9995:
		return strconv.FormatFloat(x, 'f', 2, 64)
	default:
		return strconv.FormatFloat(x, 'f', 3, 64)
	}
}

// Percent rounds down, so that 100 % means all.
func Percent(x float64) string {
	return strconv.FormatFloat(math.Floor(x*1000+1e-9)/10, 'f', 1, 64) + " %"
}

// Bytes formats a number of bytes with three digits and a unit.
func Bytes(x float64) string {
	unit := 0
	for x >= 999.5 && unit < len(byteUnits)-1 {
		x /= 1024
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%.0f %s", x, byteUnits[0])
	}
	return Number(x) + " " + byteUnits[unit]
}

var byteUnits = []string{"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"}

// Grouped formats n, which must not be negative, with commas between the
// thousands.
func Grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

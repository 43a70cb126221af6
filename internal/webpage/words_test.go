package webpage_test

import (
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/webpage"
)

func TestWords(t *testing.T) {
	for want, got := range map[string]string{
		"0 bytes":    webpage.Bytes(0),
		"999 bytes":  webpage.Bytes(999),
		"0.977 KiB":  webpage.Bytes(1000),
		"1.00 MiB":   webpage.Bytes(1 << 20),
		"1,000 PiB":  webpage.Bytes(1000 << 50),
		"0 s":        webpage.Duration(-time.Second),
		"1.5 s":      webpage.Duration(1500 * time.Millisecond),
		"1 min 30 s": webpage.Duration(90 * time.Second),
		"2 d 3 h":    webpage.Duration(51*time.Hour + 20*time.Second),
		"99.9 %":     webpage.Percent(0.99999),
		"100.0 %":    webpage.Percent(1),
		"0":          webpage.Number(0),
		"< 0.001":    webpage.Number(0.0001),
		"12.3":       webpage.Number(12.34),
		"1,234":      webpage.Number(1234.4),
		"1,234,567":  webpage.Grouped(1234567),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

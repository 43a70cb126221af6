package main

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/stored"
)

func TestProgressItems(t *testing.T) {
	for _, row := range []struct {
		name string
		view view
		want string
	}{
		{"before the count", view{done: amount{3, 100}}, "3 objects, 0 objects/s, 100 B, 0 B/s"},
		{
			"while it is counted",
			view{done: amount{1200, 3 << 20}, total: amount{12_000, 5 << 30}, objectRate: 99.6, byteRate: 1500},
			"1,200 of at least 12,000 objects, 100 objects/s, 3.1 MB of at least 5.4 GB, 1.5 kB/s",
		},
		{
			"counted",
			view{
				done: amount{1_234_567, 8 << 40}, total: amount{2_000_000, 9 << 40}, counted: true, failed: 2,
				fraction: 0.617, left: 26*time.Hour + 20*time.Minute, objectRate: 10,
			},
			"1,234,567 of 2,000,000 objects (61.7 %), 1d02h left, 2 failed, 10 objects/s, 8.8 TB of 9.9 TB, 0 B/s",
		},
		{
			"more than was counted",
			view{done: amount{7, 7}, total: amount{5, 5}, counted: true, fraction: 1},
			"7 of 7 objects (100.0 %), 0 objects/s, 7 B of 7 B, 0 B/s",
		},
		{
			"one object",
			view{
				one: true, done: amount{0, 25e6}, total: amount{1, 100e6}, counted: true,
				fraction: 0.25, left: 90 * time.Second, byteRate: 12_345_678,
			},
			"25 MB of 100 MB (25.0 %), 1m30s left, 12 MB/s",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := strings.Join(row.view.items(), ", "); got != row.want {
				t.Errorf("%s\nwant %s", got, row.want)
			}
		})
	}
}

// Without a terminal, there is a plain line each minute, and nothing for a
// short run, which is not even counted.
func TestProgressWithoutATerminal(t *testing.T) {
	for _, row := range []struct {
		name    string
		minutes int
		broken  bool // the listing that counts ends with an error
		want    []string
	}{
		{"a short run", 0, false, nil},
		{
			"three minutes", 3, false,
			[]string{
				"60 of 600 objects (10.0 %), 9m00s left, 1 objects/s, 60 kB of 600 kB, 1.0 kB/s",
				"120 of 600 objects (20.0 %), 8m00s left, 1 objects/s, 120 kB of 600 kB, 1.0 kB/s",
				"180 of 600 objects (30.0 %), 7m00s left, 1 objects/s, 180 kB of 600 kB, 1.0 kB/s",
			},
		},
		{
			"a listing that breaks", 1, true,
			[]string{"60 of at least 600 objects, 1 objects/s, 60 kB of at least 600 kB, 1.0 kB/s"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out output
				counted := 0
				p := newProgress(&out, "verify", workOfBodies)
				p.start(t.Context(), func(yield func(stored.Entry, error) bool) {
					for ; counted < 600; counted++ {
						if !yield(stored.Entry{Size: 1000}, nil) {
							return
						}
					}
					if row.broken {
						yield(stored.Entry{}, errors.New("broken"))
					}
				})

				for range row.minutes * 60 {
					time.Sleep(time.Second / 2) // not when a line is due
					p.add(amount{1, 1000})
					time.Sleep(time.Second / 2)
				}
				synctest.Wait()
				p.end()

				var want strings.Builder
				for _, line := range row.want {
					want.WriteString("verify: " + line + "\n")
				}
				if out.String() != want.String() {
					t.Errorf("%q\nwant %q", out.String(), want.String())
				}
				if row.minutes == 0 && counted > 0 {
					t.Errorf("%d objects were counted", counted)
				}
			})
		})
	}
}

func TestPosition(t *testing.T) {
	type object struct {
		key   string
		again bool
	}
	for _, row := range []struct {
		name     string
		versions bool
		passed   []object
		want     string
	}{
		{"nothing", false, nil, "start"},
		{"all done", false, []object{{"a", false}, {"b", false}}, "b"},
		{"the store at fault at the end", false, []object{{"a", false}, {"b", true}, {"c", true}}, "a"},
		{"one that fails between others", false, []object{{"a", true}, {"b", false}}, "b"},
		{"versions of one key", true, []object{{"a", false}, {"a", false}}, "start"},
		{"versions of two keys", true, []object{{"a", false}, {"a", false}, {"b", false}}, "a"},
		{"a version at fault", true, []object{{"a", false}, {"b", true}, {"b", false}, {"c", false}}, "a"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := position{versions: row.versions, after: "start"}
			for _, o := range row.passed {
				p.passed(o.key, o.again)
			}
			if p.after != row.want {
				t.Errorf("%q, want %q", p.after, row.want)
			}
		})
	}
}

func TestShellWord(t *testing.T) {
	for word, want := range map[string]string{
		"":                `''`,
		"s3://b/dir/a.b":  `s3://b/dir/a.b`,
		"a b":             `'a b'`,
		"it's":            `'it'\''s'`,
		"$(x)":            `'$(x)'`,
		"ü":               `'ü'`,
		"a\nb'\x1b[2J\\é": `$'a\x0ab\'\x1b[2J\\\xc3\xa9'`,
	} {
		if got := shellWord(word); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
}

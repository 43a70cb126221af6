package main

import (
	"net/http"
)

// cell is a kind of request that is measured, and its goal.
type cell struct {
	name     string
	method   string
	size     int64  // of the object
	parts    bool   // whether it is a multipart object, in parts of 8 MiB
	ranged   int64  // bytes to read of it; 0 means all
	listed   int    // keys in the listing
	checksum string // algorithm of the trailer of an upload; "" means no trailer
	reuse    bool   // whether the rule has dek_reuse
	tls      bool   // on both sides
	goal     goal
}

// goal limits what a request of ours may cost.
type goal struct {
	limit float64 // times the cost of the reference
	of    reference
}

// reference is what our cost is compared with. All of it is measured in the
// same round.
type reference struct {
	target string // whose cost
	cell   string // at which cell; "" means the same cell
	plus   passes // what encryption costs at least
}

// passes are passes over the data in one thread.
type passes struct{ aes, crc bool }

var (
	toPlain      = reference{target: plainName}
	toNginx      = reference{target: nginxName}
	toNginxAES   = reference{target: nginxName, plus: passes{aes: true}}
	toPlainSum   = reference{target: plainName, plus: passes{aes: true, crc: true}}
	toOurGet     = reference{target: oursName, cell: "GET 4 KiB"}
	toOurPut     = reference{target: oursName, cell: "PUT 1 MiB"}
	multipart    = int64(32 << 20)
	partSize     = int64(8 << 20)
	largeObjects = int64(64 << 20)
)

// cells are the rows of the table, with the goals of 2026-11-30.
var cells = []cell{
	{name: "GET 4 KiB", method: http.MethodGet, size: 4 << 10, goal: goal{1.6, toPlain}},
	{
		name:   "range of 4 KiB of a single-PUT object of 1 MiB",
		method: http.MethodGet, size: 1 << 20, ranged: 4 << 10, goal: goal{1.2, toOurGet},
	},
	{
		name:   "range of 4 KiB of a multipart object of 32 MiB",
		method: http.MethodGet, size: multipart, parts: true, ranged: 4 << 10, goal: goal{1.2, toOurGet},
	},
	{name: "HEAD", method: http.MethodHead, size: 4 << 10, goal: goal{1.4, toPlain}},
	{name: "PUT 4 KiB", method: http.MethodPut, size: 4 << 10, goal: goal{2.0, toPlain}},
	{name: "PUT 4 KiB, `dek_reuse`", method: http.MethodPut, size: 4 << 10, reuse: true, goal: goal{2.0, toPlain}},
	{name: "LIST of 1,000", method: http.MethodGet, listed: 1000, goal: goal{10, toNginx}},

	{name: "GET 1 MiB", method: http.MethodGet, size: 1 << 20, goal: goal{1.2, toNginxAES}},
	{name: "PUT 1 MiB", method: http.MethodPut, size: 1 << 20, goal: goal{1.4, toNginxAES}},
	{
		name:   "PUT 1 MiB, CRC32 trailer",
		method: http.MethodPut, size: 1 << 20, checksum: "CRC32", goal: goal{1.15, toOurPut},
	},
	{
		name:   "PUT 1 MiB, CRC64NVME trailer",
		method: http.MethodPut, size: 1 << 20, checksum: "CRC64NVME", goal: goal{1.15, toOurPut},
	},

	{name: "GET 64 MiB", method: http.MethodGet, size: largeObjects, goal: goal{1.1, toNginxAES}},
	{name: "PUT 64 MiB", method: http.MethodPut, size: largeObjects, goal: goal{1.05, toPlainSum}},
	{
		name:   "multipart upload of 32 MiB, parts of 8 MiB",
		method: http.MethodPut, size: multipart, parts: true, goal: goal{1.05, toPlainSum},
	},
	{
		name:   "GET 64 MiB, TLS on both sides",
		method: http.MethodGet, size: largeObjects, tls: true, goal: goal{1.1, toNginx},
	},
	{
		name:   "PUT 64 MiB, TLS on both sides",
		method: http.MethodPut, size: largeObjects, tls: true, goal: goal{1.3, toNginx},
	},
}

// Limits of what is not a ratio.
const (
	maxIdleRSS     = 25 << 20 // bytes
	maxGetRSS      = 70 << 20 // while 64 clients GET 64 MiB
	maxSlowRSS     = 350 << 20
	maxAfterRSS    = maxGetRSS // 30 s after the slow GETs
	maxPerIdleConn = 12 << 10
	maxKMSCall     = 220.0 // µs
)

// moved returns how many bytes a request moves; 0 if they do not matter.
func (c cell) moved() int64 {
	switch {
	case c.method == http.MethodHead || c.listed > 0:
		return 0
	case c.ranged > 0:
		return c.ranged
	default:
		return c.size
	}
}

// bulk reports whether the cell is about bytes and not about requests.
func (c cell) bulk() bool { return c.moved() >= 1<<20 }

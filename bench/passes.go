package main

import (
	"crypto/aes"
	"crypto/cipher"
	"hash/crc32"
	"runtime"

	"golang.org/x/sys/unix"
)

// passCosts is what one pass over the data costs, in CPU seconds per GiB.
type passCosts struct{ seal, open, crc float64 }

// measurePasses measures the passes in this process, in one thread and with
// the segments of the object format.
func measurePasses() passCosts {
	const segment, total = 64 << 10, 128 << 20
	block, err := aes.NewCipher(noise[:32])
	if err != nil {
		panic(err) // only for a key of a wrong length
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for a block size of another cipher
	}

	// As many segments as a worker of the proxy touches, not one that stays
	// in the first cache.
	nonce, sealed := noise[:gcm.NonceSize()], make([]byte, 0, segment+gcm.Overhead())
	next := func(i int) []byte { return noise[i*segment%len(noise):][:segment] }
	var costs passCosts
	costs.seal = secondsPerGiB(total, func() {
		for i := range total / segment {
			sealed = gcm.Seal(sealed[:0], nonce, next(i), nil)
		}
	})

	plain := make([]byte, 0, segment)
	costs.open = secondsPerGiB(total, func() {
		for range total / segment {
			if _, err := gcm.Open(plain, nonce, sealed, nil); err != nil {
				panic(err) // it was sealed above
			}
		}
	})

	costs.crc = secondsPerGiB(total, func() {
		for i := range total / segment {
			crc32.Update(0, crc32.IEEETable, next(i))
		}
	})
	return costs
}

// secondsPerGiB returns the CPU time of this thread that f takes for total
// bytes, scaled to a GiB. Time in which other programs run does not count.
func secondsPerGiB(total int, f func()) float64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := threadTime()
	f()
	return float64(threadTime()-begin) / 1e9 / float64(total) * (1 << 30)
}

func threadTime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err) // Linux has had this clock since 2.6.12
	}
	return ts.Nano()
}

// of returns the cost of the passes at a cell: a GET opens, a PUT seals.
func (p passCosts) of(wanted passes, c cell) (cost float64) {
	if wanted.aes && c.method == "GET" {
		cost += p.open
	} else if wanted.aes {
		cost += p.seal
	}
	if wanted.crc {
		cost += p.crc
	}
	return cost
}

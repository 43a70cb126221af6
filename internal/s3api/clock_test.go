package s3api_test

import (
	"bufio"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// wallShifted returns t as if the wall clock, but not the monotonic clock,
// had been changed by d, in whole seconds. Package time cannot make such a
// time, so this changes its fields.
func wallShifted(t testing.TB, at time.Time, d time.Duration) time.Time {
	t.Helper()
	const secondsShift = 30 // position of the wall clock's seconds, see package time
	out := at
	wall := (*uint64)(unsafe.Pointer(&out))
	*wall += uint64(int64(d/time.Second)) << secondsShift
	if out.Sub(at) != 0 || out.Unix()-at.Unix() != int64(d/time.Second) {
		t.Skip("package time has another form of a Time")
	}
	return out
}

// Setting the clock back or forward does not end an active transfer, and
// does not keep an idle one alive.
func TestAClockThatIsSet(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]time.Duration{"back": -time.Hour, "forward": time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const limit, size = 2 * time.Second, 25
			var jumped atomic.Bool

			p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) {
				cfg.Settings.IdleTimeout = limit
				cfg.Now = func() time.Time {
					if jumped.Load() {
						return wallShifted(t, time.Now(), by)
					}
					return time.Now()
				}
			})

			conn := p.dialPut(size)
			for i := range size {
				if i == 5 {
					jumped.Store(true)
				}
				time.Sleep(limit / 10)
				conn.Write([]byte("x"))
			}

			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()

			if resp.StatusCode != http.StatusOK {
				t.Errorf("an upload whose bytes moved: %d %s", resp.StatusCode, text)
			}

			jumped.Store(false)
			conn = p.dialPut(size)
			conn.Write([]byte("x"))
			for p.keys.Status()[0].Leases == 0 { // the signature was verified
				time.Sleep(time.Millisecond)
			}
			jumped.Store(true)

			resp, err = http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()

			if resp.StatusCode != http.StatusBadRequest {
				t.Errorf("an upload that stalls: %d", resp.StatusCode)
			}
		})
	}
}

// The race detector maps too much memory to scan.

//go:build linux && !race

package s3api_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sync/errgroup"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// mask hides data keys that the test itself keeps from the scan.
const mask = 0x5a

// noting is a key that records its data keys, masked.
type noting struct {
	kms.Wrapper
	mu     sync.Mutex
	masked [][]byte
}

func (n *noting) note(dek []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	masked := make([]byte, len(dek))
	for i, b := range dek {
		masked[i] = b ^ mask
	}
	for _, known := range n.masked {
		if bytes.Equal(known, masked) {
			return
		}
	}
	n.masked = append(n.masked, masked)
}

func (n *noting) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	n.note(dek)
	return n.Wrapper.Wrap(ctx, dek, ec)
}

// copiesInMemory counts the places in this process's writable memory that
// contain the unmasked needle.
func copiesInMemory(t *testing.T, masked []byte) (copies int) {
	t.Helper()
	const piece = 1 << 20
	buffer, err := syscall.Mmap(
		-1,
		0,
		piece+64,
		syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE,
	)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(buffer)

	own := uintptr(unsafe.Pointer(&buffer[0]))
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Skipf("the process cannot read its own memory: %v", err)
	}
	defer mem.Close()

	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}

	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var from, to uintptr
		var rights string
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); n != 3 ||
			!strings.HasPrefix(rights, "rw") {
			continue
		}

		for at := from; at < to; at += piece {
			n, _ := mem.ReadAt(buffer[:min(piece+31, to-at)], int64(at))
			for i := range max(n-31, 0) {
				if h := at + uintptr(i); h >= own && h < own+uintptr(len(buffer)) {
					continue
				}
				if buffer[i] == masked[0]^mask && same(buffer[i:i+32], masked) {
					copies++
				}
			}

			clear(buffer)
		}
	}

	return copies
}

func same(b, masked []byte) bool {
	for i := range masked {
		if b[i] != masked[i]^mask {
			return false
		}
	}
	return true
}

// fewCopies is the number of copies of a data key that cannot be wiped: on a
// stack that was moved, or in a saved register.
const fewCopies = 3

// A purge leaves no data key in freed memory, except where Go gives no
// access.
func TestMemoryAfterAPurge(t *testing.T) {
	key := &noting{}
	p := newProxy(t, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		key.Wrapper = cfg.Keys[0].Wrapper
		cfg.Keys[0].Wrapper = key
	})
	text := randomText(100_000)
	p.put("k", text)

	m := p.upload("parts", []int{5 << 20, 100})

	whole := m.text()
	var all errgroup.Group
	all.SetLimit(8)

	for i := range 300 {
		all.Go(func() error {
			name, spec, want := "k", "", text
			switch {
			case i%50 == 0:
				name, want = m.key, whole
			case i%3 == 0:
				spec, want = "bytes=70000-80000", text[70000:80001]
			}

			got, _, err := p.getRange(name, spec)
			if err == nil && !bytes.Equal(got, want) {
				err = fmt.Errorf("%s: another text of %d bytes", name, len(got))
			}
			return err
		})
	}

	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(key.masked) != 2 {
		t.Fatalf("%d data keys", len(key.masked))
	}

	count := func() (copies int) {
		for _, masked := range key.masked {
			copies += copiesInMemory(t, masked)
		}
		return copies
	}

	if n := count(); n < 2 {
		t.Errorf("%d copies of cached data keys: the scan finds nothing", n)
	} else {
		t.Logf("cached: %d copies", n)
	}
	p.keys.PurgeAll()
	p.server.Close() // connection handlers have keys on their stacks

	if n := count(); n > fewCopies {
		t.Errorf("after a purge %d copies of data keys are in memory, want %d at most", n, fewCopies)
	} else {
		t.Logf("purged: %d copies", n)
	}

	_, head := p.stored("k")
	stream := maskedStreamKey(t, head, key.masked[0])
	if n := copiesInMemory(t, stream); n > fewCopies {
		t.Errorf("after a purge %d copies of an object's stream key are in memory, want %d at most", n, fewCopies)
	}
}

// maskedStreamKey derives the key of a body, see docs/format.md. It leaves a
// copy or two itself.
func maskedStreamKey(t *testing.T, head http.Header, masked []byte) []byte {
	t.Helper()
	header, err := base64.StdEncoding.DecodeString(head.Get("X-Amz-Meta-Cmek-Header"))
	if err != nil || len(header) < 33 {
		t.Fatal(err)
	}
	dek := bytes.Clone(masked)
	defer clear(dek)

	for i := range dek {
		dek[i] ^= mask
	}
	key, err := hkdf.Key(sha256.New, dek, header[1:33], "cmekproxy v1 body", len(dek))
	if err != nil {
		t.Fatal(err)
	}

	for i := range key {
		key[i] ^= mask
	}
	return key
}

package s3api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// shrink makes the store report an object as empty.
func shrink(resp *http.Response) {
	if resp.Header.Get("X-Amz-Meta-Cmek-Size") != "" {
		resp.Header.Set("X-Amz-Meta-Cmek-Size", "0")
		resp.ContentLength = 0
	}
	if etag := resp.Header.Get("Etag"); strings.HasSuffix(etag, `-2"`) {
		resp.Header.Set("Etag", strings.Replace(etag, `-2"`, `-1"`, 1))
	}
}

// A HEAD is verified if the key is cached, and always if VerifyHead is set.
func TestHeadIsVerified(t *testing.T) {
	for _, always := range []bool{false, true} {
		t.Run(fmt.Sprintf("always %t", always), func(t *testing.T) {
			p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.Settings.VerifyHead = always })
			p.put("single", randomText(1000))
			p.upload("parts", []int{5 * mib, 1000}).mustComplete()

			for _, warm := range []bool{false, true} {
				for _, key := range []string{"single", "parts"} {
					p.keys.PurgeAll()
					p.server.Config.Handler.(*s3api.Server).Forget()
					if warm {
						p.mustGet(key)
					}

					head := request{method: "HEAD", path: "/" + p.bucket + "/" + key}
					if a := p.send(head); a.StatusCode != http.StatusOK {
						t.Errorf("%s, always %t, warm %t: %d of what is true", key, always, warm, a.StatusCode)
					}
					p.origin.set(nil, shrink)
					a := p.send(head)
					p.origin.set(nil, nil)

					must := always || warm && key == "single"
					if must && a.StatusCode < 400 {
						t.Errorf(
							"%s, always %t, warm %t: %d, %d bytes of what is not",
							key,
							always,
							warm,
							a.StatusCode,
							a.ContentLength,
						)
					}
				}
			}
		})
	}
}

// A HEAD of a range after the end returns the size only after verifying it.
func TestHeadOfARangeOutside(t *testing.T) {
	p := newProxy(t)
	p.put("single", randomText(1000))
	p.keys.PurgeAll()
	head := request{method: "HEAD", path: "/" + p.bucket + "/single", header: http.Header{"Range": {"bytes=5000-"}}}
	if a := p.send(head); a.StatusCode != http.StatusRequestedRangeNotSatisfiable ||
		a.Header.Get("Content-Range") != "bytes */1000" {
		t.Errorf("%d, Content-Range %q", a.StatusCode, a.Header.Get("Content-Range"))
	}
	p.origin.set(nil, shrink)
	if a := p.send(head); a.StatusCode == http.StatusRequestedRangeNotSatisfiable ||
		a.Header.Get("Content-Range") != "" {
		t.Errorf("the store lies: %d, Content-Range %q", a.StatusCode, a.Header.Get("Content-Range"))
	}
}

// A copy within the store is refused if the beginning or the end of the
// object is damaged.
func TestCopyOfADamagedObject(t *testing.T) {
	p := newProxy(t)
	const n = 3*crypt.SegmentSize + 100
	for name, at := range map[string]int{
		"the header": 3, "the first segment": 100, "the last segment": -50, "the last byte": -1,
	} {
		t.Run(name, func(t *testing.T) {
			p.put("k", randomText(n))
			body, meta := p.stored("k")
			if at < 0 {
				at += len(body)
			}
			body[at] ^= 1
			p.store("k", body, meta)

			a := p.send(
				request{
					method: "PUT",
					path:   "/" + p.bucket + "/copy",
					header: http.Header{"X-Amz-Copy-Source": {fmt.Sprintf("/%s/k", p.bucket)}},
				},
			)
			if a.StatusCode != http.StatusUnprocessableEntity || p.isStored("copy") {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}

	for _, size := range []int{0, 1, crypt.SegmentSize, crypt.SegmentSize + 1, n} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			text := randomText(size)
			p.put("k", text)
			a := p.send(
				request{
					method: "PUT",
					path:   "/" + p.bucket + "/copy",
					header: http.Header{"X-Amz-Copy-Source": {fmt.Sprintf("/%s/k", p.bucket)}},
				},
			)
			if a.StatusCode != http.StatusOK || string(p.mustGet("copy")) != string(text) {
				t.Errorf("%d bytes: %d %s", size, a.StatusCode, a.body)
			}
		})
	}
}

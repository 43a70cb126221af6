package s3api_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	tmtypes "github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// readForms are the ways to read an object or its size.
func readForms(path string) map[string]request {
	form := func(query, spec string) request {
		r := request{method: "GET", path: path + query, header: http.Header{}}
		if spec != "" {
			r.header.Set("Range", spec)
		}
		return r
	}

	attributes := form("?attributes", "")
	attributes.header.Set("X-Amz-Object-Attributes", "ObjectSize,ObjectParts")
	return map[string]request{
		"whole": form(
			"",
			"",
		), "range": form("", "bytes=0-0"), "suffix": form("", "bytes=-5"), "all": form("", "bytes=0-"),
		"part 1": form("?partNumber=1", ""), "part 2": form("?partNumber=2", ""), "attributes": attributes,
		"outside": form("", "bytes=999999999-"),
	}
}

// If a store sets the size in the envelope to 0, no request gets a
// successful response for an empty object.
func TestSizeOfZero(t *testing.T) {
	p := newProxy(t)
	mine := newCustomer(1)
	p.put("single", randomText(1000))
	p.put("customer", randomText(1000), mine.put)

	p.origin.set(nil, func(resp *http.Response) {
		if resp.Header.Get("X-Amz-Meta-Cmek-Size") == "" {
			return
		}
		resp.Header.Set("X-Amz-Meta-Cmek-Size", "0")
		resp.Header.Del("Content-Range")
		_ = resp.Body.Close()
		resp.StatusCode, resp.ContentLength, resp.Body = http.StatusOK, 0, http.NoBody
	})

	for _, key := range []string{"single", "customer"} {
		t.Run(key, func(t *testing.T) {
			for form, r := range readForms("/" + p.bucket + "/" + key) {
				for _, header := range []http.Header{nil, mine.headers(customerHeader)} {
					r := r
					r.header = merge(r.header, header)
					a := p.send(r)
					if a.StatusCode < 300 || a.Header.Get("Content-Range") != "" {
						t.Errorf("%s: %d, Content-Range %q", form, a.StatusCode, a.Header.Get("Content-Range"))
					}
				}
			}
		})
	}

	manager := transfermanager.New(
		p.client,
		func(o *transfermanager.Options) { o.GetObjectType = tmtypes.GetObjectParts },
	)
	var got discarded

	out, err := manager.DownloadObject(
		t.Context(),
		&transfermanager.DownloadObjectInput{Bucket: &p.bucket, Key: new("single"), WriterAt: &got},
	)
	if err == nil {
		t.Errorf("the transfer manager: %d bytes, %+v, no error", got, out)
	}
}

// discarded counts what is written to it.
type discarded int64

func (d *discarded) WriteAt(b []byte, _ int64) (int, error) {
	*d += discarded(len(b))
	return len(b), nil
}

// Nothing is revealed about an object whose key is revoked, even if it is
// empty or its layout is cached.
func TestNoKeyNoSize(t *testing.T) {
	p := newProxy(t)
	p.put("single", randomText(1000))
	p.put("empty", nil)
	p.upload("parts", []int{5 << 20, 100}).mustComplete()
	p.upload("ended", []int{5 << 20, 5 << 20}).mustComplete()
	p.upload("empty-parts", []int{0}).mustComplete()
	p.upload("empty-end", []int{5 << 20, 0}).mustComplete()

	keys := []string{"single", "empty", "parts", "ended", "empty-parts", "empty-end"}
	for _, key := range keys {
		for form, r := range readForms("/" + p.bucket + "/" + key) {
			a := p.send(r)
			if a.StatusCode >= 300 && a.StatusCode != http.StatusRequestedRangeNotSatisfiable {
				t.Errorf("%s, %s: %d %s", key, form, a.StatusCode, a.Code)
			}
		}
	}

	if err := os.Remove(p.keyFile); err != nil {
		t.Fatal(err)
	}
	p.keys.PurgeAll()

	for _, key := range keys {
		for form, r := range readForms("/" + p.bucket + "/" + key) {
			a := p.send(r)
			if a.StatusCode < 300 || a.Header.Get("Content-Range") != "" {
				t.Errorf(
					"the key of %s is revoked, %s: %d, Content-Range %q",
					key,
					form,
					a.StatusCode,
					a.Header.Get("Content-Range"),
				)
			}
		}
	}
}

// The same for customer keys.
func TestNoCustomerKeyNoSize(t *testing.T) {
	p := newProxy(t)
	mine, other := newCustomer(1), newCustomer(2)
	p.put("single", randomText(1000), mine.put)
	p.put("empty", nil, mine.put)
	m := p.create("parts", func(in *s3.CreateMultipartUploadInput) {
		in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = mine.algorithm, mine.key, mine.md5
	})

	m.send(1, nil, func(in *s3.UploadPartInput) {
		in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = mine.algorithm, mine.key, mine.md5
	})
	m.mustComplete()

	for _, key := range []string{"single", "empty", "parts"} {
		t.Run(key, func(t *testing.T) {
			for form, r := range readForms("/" + p.bucket + "/" + key) {
				for name, header := range map[string]http.Header{
					"its": mine.headers(customerHeader), "no": nil, "another": other.headers(customerHeader),
				} {
					r := r
					r.header = merge(r.header, header)
					a := p.send(r)
					good := a.StatusCode < 300 || a.StatusCode == http.StatusRequestedRangeNotSatisfiable

					told := a.StatusCode < 300 || a.Header.Get("Content-Range") != ""
					if name == "its" && !good || name != "its" && told {
						t.Errorf(
							"%s, with %s key: %d %s, Content-Range %q",
							form,
							name,
							a.StatusCode,
							a.Code,
							a.Header.Get("Content-Range"),
						)
					}
				}
			}
		})
	}
}

// If a store says that an object ends within its first part, the layout is
// not accepted.
func TestTotalWithinAPart(t *testing.T) {
	p := newProxy(t)
	text := p.upload("k", []int{5 * mib, 1234}).text()
	for _, total := range []int64{1, 9216, 20_000, 131_252, 5 * mib, 5*mib + 9215, 5*mib + 9217, 5*mib + 2*9216 + 1233} {
		t.Run(fmt.Sprint(total), func(t *testing.T) {
			p.origin.set(nil, func(resp *http.Response) {
				var from, to, size int64
				if n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); n == 3 {
					resp.Header.Set(
						"Content-Range",
						fmt.Sprintf("bytes %d-%d/%d", min(from, total-1), min(to, total-1), total),
					)
				}
			})

			for _, spec := range []string{"bytes=0-9", "bytes=-20", "bytes=0-", "bytes=5242870-"} {
				p.server.Config.Handler.(*s3api.Server).Forget()
				p.log.reset()
				got, out, err := p.getRange("k", spec)
				if err == nil && !bytes.HasSuffix([]byte(*out.ContentRange), fmt.Appendf(nil, "/%d", len(text))) {
					t.Errorf("of %d, %s: %d bytes, Content-Range %s", total, spec, len(got), *out.ContentRange)
				}

				if strings.Contains(p.log.String(), "panic") {
					t.Errorf("of %d, %s: a panic", total, spec)
				}
			}
		})
	}
}

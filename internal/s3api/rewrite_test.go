package s3api

import (
	"bytes"
	"encoding/xml"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

func TestETags(t *testing.T) {
	for stored, shown := range map[string]string{
		`"abc"`: `"abc-0"`, `abc`: `abc-0`, `"abc-3"`: `"abc-3"`, ``: ``, `W/"abc"`: `W/"abc-0"`,
	} {
		t.Run(stored, func(t *testing.T) {
			if got := showETag(stored); got != shown {
				t.Errorf("showETag(%s) = %s", stored, got)
			}
			if got := storedETags(shown); got != stored {
				t.Errorf("storedETags(%s) = %s, want %s", shown, got, stored)
			}
		})
	}

	for shown, stored := range map[string]string{
		`"a-0", "b-0"`: `"a", "b"`, `"a-0","b-5"`: `"a", "b-5"`, `*`: `*`, `a-0`: `a`, `"a-00"`: `"a-00"`, `"-0"`: `""`,
	} {
		t.Run(shown, func(t *testing.T) {
			if got := storedETags(shown); got != stored {
				t.Errorf("storedETags(%s) = %s, want %s", shown, got, stored)
			}
		})
	}
}

// A key may contain characters that an XML parser refuses, or text that
// looks like markup when it is decoded.
func TestListingIsCopiedByteForByte(t *testing.T) {
	const before = "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"ns\"><Name>b</Name><Size>1</Size>\n <Contents><Key>a&#x1;&lt;Size&gt;9</Key><ETag>&quot;e1&quot;</ETag><Size>66</Size><New><Thing/></New></Contents>" +
		"<Contents><Size>15728640</Size><ETag>\"e2-3\"</ETag></Contents><Contents><Size>5</Size><ETag>e3</ETag></Contents><CommonPrefixes/></ListBucketResult>"
	const after = "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"ns\"><Name>b</Name><Size>1</Size>\n <Contents><Key>a&#x1;&lt;Size&gt;9</Key><ETag>&quot;e1-0&quot;</ETag><Size>10</Size><New><Thing/></New></Contents>" +
		"<Contents><Size>15700992</Size><ETag>\"e2-3\"</ETag></Contents><Contents><Size>5</Size><ETag>e3-0</ETag></Contents><CommonPrefixes/></ListBucketResult>"
	got, err := listing([]byte(before))
	if err != nil || string(got) != after {
		t.Errorf("got  %s\nwant %s, %v", got, after, err)
	}
}

// listing rewrites a listing whose objects need no HEAD.
func listing(doc []byte) ([]byte, error) {
	cache := dekcache.New(dekcache.Config{TTL: time.Minute, MaxEntries: 1, Now: time.Now})
	defer cache.Close()
	keys, err := keyring.New(keyring.Config{Cache: cache}) // without a rule, plaintext is not allowed
	if err != nil {
		return nil, err
	}
	counts := capability.Set{capability.PartCount: capability.Yes}
	s := &Server{Config: Config{Capabilities: capability.Always(counts)}}
	return s.listWithSizes(&call{Request: &http.Request{}, keys: keys, bucket: "b", client: &access.Client{}}, doc, "Contents")
}

func FuzzListing(f *testing.F) {
	f.Add([]byte("<Contents><Size>66</Size><ETag>e</ETag></Contents>"))
	f.Add([]byte("<Contents><Contents></Contents>"))
	f.Add([]byte("<Contents><Size></Contents></Size>"))

	f.Fuzz(func(t *testing.T, doc []byte) {
		if got := changeElements(doc, "Contents", func(entry []byte) []byte { return entry }); !bytes.Equal(got, doc) {
			t.Fatal("changing nothing changes something")
		}
		shown, err := listing(doc)
		if err != nil {
			t.Fatal(err)
		}

		if before, after := keysOf(doc), keysOf(shown); !slices.Equal(before, after) {
			t.Fatalf("keys come or go: %q became %q", before, after)
		}
		if again, err := listing(doc); err != nil || !bytes.Equal(again, shown) {
			t.Fatal("the same listing is shown in two ways")
		}
	})
}

// keysOf returns the keys of a listing's entries, in order.
func keysOf(doc []byte) (keys []string) {
	changeElements(doc, "Contents", func(entry []byte) []byte {
		key, _, _ := element(entry, "Key")
		keys = append(keys, string(key))
		return entry
	})
	return keys
}

// FuzzHoisting checks which parameters of a presigned URL become headers:
// only those that the operation has, none twice, and none that breaks a
// header.
func FuzzHoisting(f *testing.F) {
	for _, query := range []string{
		"X-Amz-Acl=private", "x-amz-acl=private&X-Amz-Acl=public-read", "X-Amz-Meta-A=%0d%0aInjected:1", "x-amz-meta-%00=1",
		"X-Amz-Signature=s&x-id=PutObject",
		"x-amz-server-side-encryption-customer-key=k", "Host=evil", "x-amz-copy-source=/a/b",
		"x-amz-meta-a=1&x-amz-meta-a=2", "versionId=v&partNumber=1",
		"x-amz-checksum-crc32=AAAAAA%3D%3D&x-amz-sdk-checksum-algorithm=CRC32", "x-amz-unheard-of=a",
	} {
		f.Add(query, "X-Amz-Meta-A", "1", byte(0))
	}

	f.Fuzz(func(t *testing.T, rawQuery, name, value string, which byte) {
		query, err := url.ParseQuery(rawQuery)
		if err != nil {
			return
		}
		sent := http.Header{}
		sent.Set(name, value)

		c := &call{
			Request: &http.Request{Header: sent.Clone()},
			auth:    &sigv4.Auth{Presigned: true},
			route:   &routes[int(which)%len(routes)],
			query:   maps.Clone(query),
		}

		original := c.Header
		if err := c.takeHoisted(); err != nil {
			return
		}
		if !maps.EqualFunc(original, sent, slices.Equal[[]string]) {
			t.Fatal("the request's own header is altered")
		}

		for parameter, values := range query {
			if c.query.Has(parameter) {
				continue
			}
			lower := strings.ToLower(parameter)
			if c.route.ignoresHoisted(lower) {
				continue // it is no header; see below
			}
			if !c.route.allowsHeader(lower) || customerNames.has(lower) || signatureNames.has(parameter) {
				t.Fatalf("%q became a header", parameter)
			}

			if got := c.Header.Values(parameter); !slices.Equal(got, values) {
				t.Fatalf("%q is the header %q, and was the parameter %q", parameter, got, values)
			}

			for _, v := range values {
				if strings.ContainsAny(parameter+v, "\r\n\x00") {
					t.Fatalf("the header %q: %q", parameter, v)
				}
			}
		}

		for header, values := range c.Header {
			if !slices.Equal(values, sent[header]) &&
				!slices.ContainsFunc(
					slices.Collect(maps.Keys(query)),
					func(q string) bool {
						return strings.EqualFold(q, header) && !c.route.ignoresHoisted(strings.ToLower(q))
					},
				) {
				t.Fatalf("the header %q comes from nowhere", header)
			}
		}
	})
}

// The list that was parsed is sent to the store without losses.
func FuzzCompletion(f *testing.F) {
	f.Add(
		[]byte(
			`<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"e-0"</ETag><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part></CompleteMultipartUpload>`,
		),
	)
	f.Add(
		[]byte(
			`<CompleteMultipartUpload xmlns="x"><Part><ETag>e</ETag><PartNumber>2</PartNumber></Part><Part><PartNumber>3</PartNumber><ETag>&lt;</ETag></Part></CompleteMultipartUpload>`,
		),
	)

	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := parseCompletion(body)
		if err != nil {
			return
		}

		last := 0
		for _, p := range list.Parts {
			if p.PartNumber <= last || p.PartNumber > crypt.MaxPartNumber || p.ETag == "" {
				t.Fatalf("part %d after %d, ETag %q", p.PartNumber, last, p.ETag)
			}
			last = p.PartNumber
		}

		if _, _, err := list.digests(objectSum{}, func(string) (objectSum, bool) { return objectSum{}, false }); err == nil &&
			len(list.Parts) == 0 {
			t.Fatal("an empty list")
		}
	})
}

// Refused keys are added to the store's answer. If the store's answer is
// empty, they are sent alone.
func TestErrorsOfDeleteObjects(t *testing.T) {
	no := &Error{Code: "AccessDenied", Message: "Access Denied"}
	denied := []deletionResult{
		{deletionObject: deletionObject{Key: "a&b"}, reason: no},
		{deletionObject: deletionObject{Key: "c", VersionID: "v"}, reason: no},
	}
	const errors = "<Error><Key>a&amp;b</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>" +
		"<Error><Key>c</Key><VersionId>v</VersionId><Code>AccessDenied</Code><Message>Access Denied</Message></Error></DeleteResult>"

	const alone = xml.Header + `<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">` + errors
	for said, want := range map[string]string{
		"<DeleteResult><Deleted><Key>x</Key></Deleted></DeleteResult>\n": "<DeleteResult><Deleted><Key>x</Key></Deleted>" + errors,
		"<DeleteResult/>": alone, `<?xml version="1.0"?><DeleteResult xmlns="x" />`: alone, "": alone,
	} {
		t.Run(said, func(t *testing.T) {
			if got := string(new(deletion).withResults([]byte(said), denied)); got != want {
				t.Errorf("%s", got)
			}
		})
	}
}

func FuzzDeleteDocument(f *testing.F) {
	f.Add([]byte("<Delete><Object><Key>k</Key><ETag>e-0</ETag></Object><Quiet>true</Quiet></Delete>"))
	f.Add([]byte("<Delete><Object><Key>&lt;</Key></Object></Delete>"))
	f.Fuzz(func(t *testing.T, body []byte) {
		first, err := parseDeletion(body)
		if err != nil {
			return
		}

		once, err := first.encode()
		if err != nil {
			t.Fatal(err)
		}

		second, err := parseDeletion(once)
		if err != nil {
			t.Fatalf("%q became %q, which is refused: %v", body, once, err)
		}
		if len(first.Objects) != len(second.Objects) {
			t.Fatal("keys come or go")
		}
	})
}

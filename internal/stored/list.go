package stored

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
)

// Listing says which objects of a bucket are to be listed.
type Listing struct {
	Bucket   string
	Prefix   string
	After    string // a key: those that come after it only
	Versions bool   // all versions, and not the current ones only. After must be empty then
}

// Entry is one object of a listing, or one version of it. Delete markers are
// left out.
type Entry struct {
	Key     string
	Version string // version id; "" for the current version where versions were not asked for or there are none
	Latest  bool   // it is the current version
	Size    int64  // stored, in bytes
}

// maxListing bounds a page of a listing, in bytes: 1,000 entries with keys of
// 1,024 bytes, each byte in 3 or more.
const maxListing = 16 << 20

// List lists objects as the store does, in the order of their keys, one page
// of the store in memory at a time. Sizes are those of the ciphertext. An
// error is the last that it yields.
func (s *Reader) List(ctx context.Context, l Listing) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		query := l.first()
		for {
			page, err := s.page(ctx, l.Bucket, query)
			if err != nil {
				yield(Entry{}, err)
				return
			}

			for _, e := range page.entries() {
				if !yield(e, nil) {
					return
				}
			}

			if !page.IsTruncated {
				return
			}

			if !page.next(query) {
				yield(
					Entry{},
					fmt.Errorf("%w does not say where its listing goes on, or that it goes on where it was", ErrStore),
				)
				return
			}
		}
	}
}

// first is the query for the first page. Keys may hold what XML cannot, so
// they are wanted in percent-encoding.
func (l Listing) first() url.Values {
	query := url.Values{"max-keys": {"1000"}, "encoding-type": {"url"}}
	if l.Prefix != "" {
		query.Set("prefix", l.Prefix)
	}
	if l.Versions {
		query.Set("versions", "")
		return query
	}
	query.Set("list-type", "2")
	if l.After != "" {
		query.Set("start-after", l.After)
	}
	return query
}

// listingPage is ListBucketResult or ListVersionsResult.
type listingPage struct {
	IsTruncated           bool
	EncodingType          string
	NextContinuationToken string
	NextKeyMarker         string
	NextVersionIdMarker   string
	Contents              []listedObject
	Version               []listedObject
}

type listedObject struct {
	Key       string
	VersionId string
	IsLatest  bool
	Size      int64
}

func (s *Reader) page(ctx context.Context, bucket string, query url.Values) (*listingPage, error) {
	u := &url.URL{Path: "/" + bucket, RawQuery: strings.ReplaceAll(query.Encode(), "+", "%20")}
	r := &http.Request{
		Method:     http.MethodGet,
		URL:        u,
		Header:     make(http.Header),
		Proto:      "HTTP/1.1",
		ProtoMajor: 1,
		ProtoMinor: 1,
	}

	resp, err := s.Send(r.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("listing bucket %s: %w", bucket, err)
	}
	defer CloseBody(resp)

	page := &listingPage{}
	if err := xml.NewDecoder(io.LimitReader(resp.Body, maxListing)).Decode(page); err != nil {
		return nil, fmt.Errorf("listing bucket %s: %w: %w", bucket, ErrStore, err)
	}
	return page, page.decode()
}

// decode undoes the percent-encoding, where the store has done it: not every
// store knows it.
func (p *listingPage) decode() error {
	if p.EncodingType != "url" {
		return nil
	}
	names := []*string{&p.NextKeyMarker}

	for _, list := range [][]listedObject{p.Contents, p.Version} {
		for i := range list {
			names = append(names, &list[i].Key)
		}
	}

	for _, name := range names {
		plain, err := url.QueryUnescape(*name)
		if err != nil {
			return fmt.Errorf("%w lists %.60q in percent-encoding: %w", ErrStore, *name, err)
		}
		*name = plain
	}

	return nil
}

// entries are the objects of a page: Contents are all current versions, and a
// page has them or Version.
func (p *listingPage) entries() []Entry {
	out := make([]Entry, 0, len(p.Contents)+len(p.Version))
	for _, o := range p.Contents {
		out = append(out, Entry{Key: o.Key, Latest: true, Size: o.Size})
	}
	for _, o := range p.Version {
		e := Entry{Key: o.Key, Version: o.VersionId, Latest: o.IsLatest, Size: o.Size}
		if e.Latest && e.Version == "null" {
			e.Version = "" // of a bucket without versions, whose store may not know the id
		}
		out = append(out, e)
	}
	return out
}

// next turns the query into the one for the next page.
func (p *listingPage) next(query url.Values) bool {
	if !query.Has("versions") {
		same := query.Get("continuation-token") == p.NextContinuationToken
		query.Set("continuation-token", p.NextContinuationToken)
		return p.NextContinuationToken != "" && !same
	}

	if query.Get("key-marker") == p.NextKeyMarker && query.Get("version-id-marker") == p.NextVersionIdMarker {
		return false
	}
	query.Set("key-marker", p.NextKeyMarker)
	query.Del("version-id-marker")

	if p.NextVersionIdMarker != "" {
		query.Set("version-id-marker", p.NextVersionIdMarker)
	}
	return p.NextKeyMarker != ""
}

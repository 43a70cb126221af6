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

// Listing says which objects of a bucket to list.
type Listing struct {
	Bucket   string
	Prefix   string
	After    string // list only keys after this one
	Versions bool   // list all versions, not only the current ones
}

// Entry is one object of a listing, or one version of it. Delete markers are
// left out.
type Entry struct {
	Key     string
	Version string // version id; "" for the current version, unless Versions is set and the bucket has versions
	Latest  bool   // the current version
	Size    int64  // stored size, in bytes
}

// maxListing limits a page of a listing, in bytes: 1,000 entries with keys
// of 1,024 bytes, percent-encoded.
const maxListing = 16 << 20

// List lists objects in the store's order, which is that of the keys. It
// keeps one page of the store in memory. Sizes are those of the ciphertext.
// It yields an error last.
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
					fmt.Errorf("%w sent a listing without a next page, or with the same page again", ErrStore),
				)
				return
			}
		}
	}
}

// first returns the query for the first page. It asks for percent-encoding,
// because keys may have characters that XML does not allow.
func (l Listing) first() url.Values {
	query := url.Values{"max-keys": {"1000"}, "encoding-type": {"url"}}
	if l.Prefix != "" {
		query.Set("prefix", l.Prefix)
	}
	if l.Versions {
		query.Set("versions", "")
		if l.After != "" {
			query.Set("key-marker", l.After)
		}
		return query
	}
	query.Set("list-type", "2")
	if l.After != "" {
		query.Set("start-after", l.After)
	}
	return query
}

// listingPage is a ListBucketResult or ListVersionsResult document.
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

// decode decodes the percent-encoding. Not all stores encode keys.
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

// entries returns the objects of a page. A page has either Contents, which
// are current versions, or Version.
func (p *listingPage) entries() []Entry {
	out := make([]Entry, 0, len(p.Contents)+len(p.Version))
	for _, o := range p.Contents {
		out = append(out, Entry{Key: o.Key, Latest: true, Size: o.Size})
	}
	for _, o := range p.Version {
		e := Entry{Key: o.Key, Version: o.VersionId, Latest: o.IsLatest, Size: o.Size}
		if e.Latest && e.Version == "null" {
			e.Version = "" // a bucket without versions, whose store may not know the id null
		}
		out = append(out, e)
	}
	return out
}

// next changes the query to that for the next page. It returns false if
// there is none.
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

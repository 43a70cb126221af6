package rewrap

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// Abilities are the conditions that a store holds to: whether it refuses to write, with 412, when the object that would be
// overwritten has not the ETag of If-Match. That of x-amz-copy-source-if-match is none: it is on what is read, and a store
// may look at it long before it writes.
type Abilities struct {
	CopyIfMatch     bool // CopyObject
	PutIfMatch      bool // PutObject
	CompleteIfMatch bool // CompleteMultipartUpload
}

// Method is how an object that was put whole gets its new envelope.
type Method int

// The methods.
const (
	NoMethod Method = iota
	Copy            // the store copies the object onto itself; the body does not leave it
	Put             // the stored body is read and sent back
)

func (m Method) String() string {
	return [...]string{"none", "copy", "put"}[m]
}

// Safest is the method by which nothing is lost that clients write meanwhile, the cheaper one of two. NoMethod if there is
// none.
func (a Abilities) Safest() Method {
	switch {
	case a.CopyIfMatch:
		return Copy
	case a.PutIfMatch:
		return Put
	default:
		return NoMethod
	}
}

// neverAnETag is of no object.
const neverAnETag = `"00000000000000000000000000000000"`

// Probe finds out what the store can do, with a small object in the bucket, below prefix, that it removes again.
func Probe(ctx context.Context, send func(*http.Request) (*http.Response, error), bucket, prefix string) (Abilities, error) {
	var versions []string // in a bucket that keeps them
	m := New(Config{Send: func(r *http.Request) (*http.Response, error) {
		resp, err := send(r)
		if err == nil && resp.Header.Get("X-Amz-Version-Id") != "" {
			versions = append(versions, resp.Header.Get("X-Amz-Version-Id"))
		}
		return resp, err
	}})
	obj := crypt.Object{Bucket: bucket, Key: prefix + ".cmekproxy-rewrap-" + rand.Text()}
	a, err := m.probe(ctx, obj)
	ctx = context.WithoutCancel(ctx)
	_, removal := m.ask(ctx, http.MethodDelete, obj, "", nil, nil)
	if removal != nil {
		removal = fmt.Errorf("removing %s: %w", obj.Key, removal)
	}
	slices.Sort(versions)
	for _, version := range slices.Compact(versions) {
		_, _ = m.ask(ctx, http.MethodDelete, obj, url.Values{"versionId": {version}}.Encode(), nil, nil) // as far as it is allowed
	}
	return a, errors.Join(err, removal)
}

func (m *Mover) probe(ctx context.Context, obj crypt.Object) (a Abilities, err error) {
	const text = "written by proxy rewrap, and to be removed by it"
	put := func(header http.Header) error {
		_, err := m.ask(ctx, http.MethodPut, obj, "", header, &payload{strings.NewReader(text), int64(len(text))})
		return err
	}
	if err := put(nil); err != nil {
		return a, err
	}
	wrong := func() http.Header { return http.Header{"If-Match": {neverAnETag}} }
	if a.PutIfMatch, err = refused(put(wrong())); err != nil {
		return a, err
	}
	header := wrong()
	header.Set("X-Amz-Copy-Source", sigv4.EscapePath("/"+obj.Bucket+"/"+obj.Key))
	header.Set("X-Amz-Metadata-Directive", "REPLACE")
	_, err = m.ask(ctx, http.MethodPut, obj, "", header, nil)
	if a.CopyIfMatch, err = refused(err); err != nil {
		return a, err
	}
	up, err := m.create(ctx, obj, nil)
	if err != nil {
		return a, err
	}
	defer up.abort(ctx)
	if err := up.send(ctx, 1, &payload{strings.NewReader(text), int64(len(text))}); err != nil {
		return a, err
	}
	a.CompleteIfMatch, err = refused(up.complete(ctx, neverAnETag))
	return a, err
}

// refused reports whether a write was refused for its condition. A store that does not know the condition may ignore it or
// say so; one that cannot be asked is an error.
func refused(err error) (bool, error) {
	switch status(err) {
	case http.StatusPreconditionFailed:
		return true, nil
	case http.StatusNotImplemented, http.StatusBadRequest, http.StatusMethodNotAllowed:
		return false, nil
	default:
		return false, err
	}
}

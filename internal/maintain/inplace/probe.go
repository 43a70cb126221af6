package inplace

import (
	"context"
	"crypto/md5" //nolint:gosec // what stores take for an ETag
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// Abilities are what a store can do. Most are conditions that it holds to: whether it refuses to write, with 412, when the object that would be
// overwritten has not the ETag of If-Match. That of x-amz-copy-source-if-match is none: it is on what is read, and a store
// may look at it long before it writes.
type Abilities struct {
	CopyIfMatch     bool // CopyObject
	PutIfMatch      bool // PutObject
	CompleteIfMatch bool // CompleteMultipartUpload
	// ETagIsMD5: the ETag of what is put, and of a part, is the MD5 of its bytes.
	ETagIsMD5 bool
}

// neverAnETag is of no object.
const neverAnETag = `"00000000000000000000000000000000"`

// Probe finds out what the store can do, with a small object in the bucket, below prefix, that it removes again.
func Probe(ctx context.Context, send func(*http.Request) (*http.Response, error), bucket, prefix string) (Abilities, error) {
	var versions []string // in a bucket that keeps them
	s := &Store{Send: func(r *http.Request) (*http.Response, error) {
		resp, err := send(r)
		if err == nil && resp.Header.Get("X-Amz-Version-Id") != "" {
			versions = append(versions, resp.Header.Get("X-Amz-Version-Id"))
		}
		return resp, err
	}}
	obj := crypt.Object{Bucket: bucket, Key: prefix + ".cmekproxy-probe-" + rand.Text()}
	a, err := s.probe(ctx, obj)
	ctx = context.WithoutCancel(ctx)
	_, removal := s.Ask(ctx, http.MethodDelete, obj, "", nil, nil)
	if removal != nil {
		removal = fmt.Errorf("removing %s: %w", obj.Key, removal)
	}
	slices.Sort(versions)
	for _, version := range slices.Compact(versions) {
		_, _ = s.Ask(ctx, http.MethodDelete, obj, url.Values{"versionId": {version}}.Encode(), nil, nil) // as far as it is allowed
	}
	return a, errors.Join(err, removal)
}

func (s *Store) probe(ctx context.Context, obj crypt.Object) (a Abilities, err error) {
	const text = "written by a command of proxy, and to be removed by it"
	put := func(header http.Header) error {
		_, err := s.Ask(ctx, http.MethodPut, obj, "", header, &Payload{strings.NewReader(text), int64(len(text))})
		return err
	}
	first, err := s.Do(NewRequest(ctx, http.MethodPut, obj, "", nil, &Payload{strings.NewReader(text), int64(len(text))}))
	if err != nil {
		return a, err
	}
	_ = first.Body.Close()
	wrong := func() http.Header { return http.Header{"If-Match": {neverAnETag}} }
	if a.PutIfMatch, err = refused(put(wrong())); err != nil {
		return a, err
	}
	header := wrong()
	header.Set("X-Amz-Copy-Source", sigv4.EscapePath("/"+obj.Bucket+"/"+obj.Key))
	header.Set("X-Amz-Metadata-Directive", "REPLACE")
	_, err = s.Ask(ctx, http.MethodPut, obj, "", header, nil)
	if a.CopyIfMatch, err = refused(err); err != nil {
		return a, err
	}
	up, err := s.Create(ctx, obj, nil)
	if err != nil {
		return a, err
	}
	defer up.Abort(ctx)
	if err := up.Send(ctx, 1, &Payload{strings.NewReader(text), int64(len(text))}); err != nil {
		return a, err
	}
	sum := md5.Sum([]byte(text)) //nolint:gosec // what stores take for an ETag
	md5 := `"` + hex.EncodeToString(sum[:]) + `"`
	a.ETagIsMD5 = first.Header.Get("Etag") == md5 && up.parts[0].ETag == md5
	a.CompleteIfMatch, err = refused(up.Complete(ctx, neverAnETag))
	return a, err
}

// refused reports whether a write was refused for its condition. A store that does not know the condition may ignore it or
// say so; one that cannot be asked is an error.
func refused(err error) (bool, error) {
	switch Status(err) {
	case http.StatusPreconditionFailed:
		return true, nil
	case http.StatusNotImplemented, http.StatusBadRequest, http.StatusMethodNotAllowed:
		return false, nil
	default:
		return false, err
	}
}

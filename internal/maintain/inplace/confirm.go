package inplace

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// damage are the errors of altered objects.
var damage = []error{
	stored.ErrIntegrity, crypt.ErrAuth, crypt.ErrTruncated, crypt.ErrTrailing,
	crypt.ErrSize, crypt.ErrEnvelope, crypt.ErrVersion, crypt.ErrDEK,
}

// IsDamage reports whether an error is that of an altered object.
func IsDamage(err error) bool {
	return slices.ContainsFunc(damage, func(d error) bool { return errors.Is(err, d) })
}

// Confirm looks again at the object of an attempt that has found a fault of
// it. While an object is being overwritten, a store may show two writes in one
// answer, or in two: the size, the body or some metadata of one with the rest
// of the other. So if the answers of the attempt differ, or the store now
// shows another object, the error is ErrChanged, which has the fault only as
// text, and Insist tries again. Otherwise it is the fault.
//
// ctx must be that of the attempt, and its requests must have been sent with
// Store.Do.
func Confirm(ctx context.Context, fault error) error {
	o, _ := ctx.Value(observedKey{}).(*observed)
	if o == nil || !o.changed(ctx) {
		return fault
	}
	return fmt.Errorf("%w while it was checked: %s", ErrChanged, fault.Error())
}

type observedKey struct{}

// observed is what the store has shown of the object of an attempt since the
// attempt has written it.
type observed struct {
	mu      sync.Mutex
	store   *Store
	url     *url.URL // of the object, or a version; nil if it was not shown
	last    shown
	differs bool // two answers show different objects
}

// shown is what an answer shows of an object.
type shown struct {
	etag     string
	size     int64       // as stored, in bytes; -1 if the answer does not have it
	metadata http.Header // with the envelope
}

func (s shown) isSame(t shown) bool {
	return s.etag == t.etag && (s.size == t.size || s.size < 0 || t.size < 0) &&
		maps.EqualFunc(s.metadata, t.metadata, slices.Equal)
}

// observe returns a context for an attempt, in which Store.Do notes what the
// store shows.
func observe(ctx context.Context) context.Context {
	return context.WithValue(ctx, observedKey{}, &observed{})
}

// note notes an answer about the object of an attempt.
func (s *Store) note(r *http.Request, resp *http.Response) {
	o, _ := r.Context().Value(observedKey{}).(*observed)
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()

	query := r.URL.Query()
	query.Del("versionId")
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case !reads && len(query) == 0, r.Method == http.MethodPost && query.Has("uploadId"): // the object is written
		o.url, o.differs = nil, false
		return
	case !reads, len(query) > 0: // about a part, or the tags
		return
	}

	now := shown{resp.Header.Get("Etag"), resp.ContentLength, make(http.Header)}
	if resp.StatusCode == http.StatusPartialContent {
		now.size = totalOf(resp.Header.Get("Content-Range"))
	}
	for name, values := range resp.Header {
		if strings.HasPrefix(name, stored.MetaPrefix) {
			now.metadata[name] = values
		}
	}
	o.differs = o.differs || o.url != nil && !now.isSame(o.last)
	o.store, o.url, o.last = s, r.URL, now
}

// totalOf returns the size of the whole object in a Content-Range; -1 if it
// does not have it.
func totalOf(contentRange string) int64 {
	_, text, _ := strings.Cut(contentRange, "/")
	total, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return -1
	}
	return total
}

// changed asks the store for the object once more, and reports whether it
// shows another one. If the store does not answer, nothing is known.
func (o *observed) changed(ctx context.Context) bool {
	o.mu.Lock()
	store, known, differs := o.store, o.url, o.differs
	o.mu.Unlock()
	if known == nil || differs {
		return differs
	}

	r := &http.Request{
		Method: http.MethodHead, URL: known, Header: make(http.Header), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	resp, err := store.Do(r.WithContext(ctx))
	if err != nil {
		return stored.StatusOf(err) == http.StatusNotFound
	}
	_ = resp.Body.Close()
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.differs
}

// Package inplace writes stored objects anew under their own names. It is what
// the commands have in common that move objects to another key and that
// encrypt what never was.
//
// What they write replaces the only copy that there may be. So it is written
// only after it has been read again by a key that the KMS has unwrapped, and
// only over the very object that it was made of: by a condition that the store
// holds to, see Abilities. What a client stores meanwhile stays.
//
//	config.go   what an object is written with: the store, the keys
//	inplace.go  requests to the store, and when they are made again
//	tags.go     what of an object is carried over beside its body
//	checked.go  bodies that verify on their way to the store
//	upload.go   objects in parts
//	send.go     requests as they go out, and what is no answer of the store
package inplace

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

var (
	// ErrChanged says that the object is another one than a moment ago.
	ErrChanged = errors.New("the object has changed")
	// ErrUnanswered says that the store could not be reached or broke off.
	ErrUnanswered = errors.New("the store does not answer")
)

// tries is how often an object is tried that changes meanwhile or whose store
// falters; pause is the first one between.
const (
	tries = 4
	pause = 250 * time.Millisecond
)

// awayPause is the first pause before a KMS is asked again that does not
// answer, longAwayPause the longest.
const (
	awayPause     = time.Second
	longAwayPause = 30 * time.Second
)

// Insist makes attempts at an object until one of them succeeds or fails for
// good. An attempt that finds no object returns the outcome Gone and the
// store's answer.
//
// A KMS that does not answer says nothing of the object: Insist waits for it
// until ctx ends. away, if not nil, is called with the error at each such wait.
func Insist(
	ctx context.Context,
	e stored.Entry,
	away func(error),
	attempt func(context.Context) (walk.Result, error),
) walk.Result {
	var r walk.Result
	var err error
	wait := awayPause

	for i := 0; i < tries; {
		if r, err = attempt(ctx); r.Outcome == walk.Gone || !again(err) || ctx.Err() != nil {
			break
		}
		next := pause << i

		if isAway(err) {
			if away != nil {
				away(err)
			}
			next, wait = wait, min(2*wait, longAwayPause)
		} else {
			i++
		}

		select {
		case <-ctx.Done():
		case <-time.After(next):
		}
	}

	r.Key, r.Version = e.Key, e.Version
	if stored.StatusOf(err) == http.StatusNotFound && r.Outcome == walk.Gone {
		err = nil
		if strings.ContainsRune(e.Key, '\uFFFD') {
			err = errors.New("not found by the name that the listing gives, which has characters that XML cannot hold")
		}
	}

	if err != nil {
		r.Outcome, r.Err = walk.Failed, err
	}
	return r
}

// again reports whether an error may pass, or the object be another one now.
// Not found, but for the first look at it, is what was deleted meanwhile.
func again(err error) bool {
	if errors.Is(err, errTried) {
		return false
	}
	switch stored.StatusOf(err) {
	case http.StatusNotFound, http.StatusPreconditionFailed, http.StatusConflict:
		return true
	}
	return errors.Is(err, ErrChanged) || errors.Is(err, stored.ErrOverwritten) || falters(err) || isAway(err)
}

// isAway reports whether err is a KMS that does not answer, or not now.
func isAway(err error) bool { return kms.IsUnreachable(err) || kms.IsThrottled(err) }

// falters reports whether it is the store that has no time or cannot be
// reached.
func falters(err error) bool {
	switch stored.StatusOf(err) {
	case http.StatusTooManyRequests,
		http.StatusInternalServerError,
		http.StatusBadGateway,
		http.StatusServiceUnavailable,
		http.StatusGatewayTimeout:
		return true
	}
	return errors.Is(err, ErrUnanswered)
}

// errTried says that a piece was tried often enough, so that the whole need
// not be.
var errTried = fmt.Errorf("%d attempts", tries)

// Retry makes attempts at a piece of an object as long as the store falters.
func Retry(ctx context.Context, attempt func() error) error {
	for i := 0; ; i++ {
		err := attempt()
		if !falters(err) || ctx.Err() != nil {
			return err
		}
		if i+1 == tries {
			return fmt.Errorf("%w: %w", errTried, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause << i):
		}
	}
}

// Store is the store behind.
type Store struct {
	Send      Sender
	ETagIsMD5 bool // see Abilities
}

// Do sends a request, and tells a store that has not answered from one that
// has said no.
func (s *Store) Do(r *http.Request) (*http.Response, error) {
	resp, err := s.Send(r)
	if body, ok := r.Body.(*outgoing); ok && err == nil && !body.ended.Load() {
		_ = resp.Body.Close()
		err = fmt.Errorf("%w answered %d before it had the whole body", stored.ErrStore, resp.StatusCode)
	}

	if body, ok := r.Body.(*outgoing); ok {
		body.wait(r.Context())
	}
	if err != nil && stored.StatusOf(err) == 0 {
		return nil, fmt.Errorf("%w: %w", ErrUnanswered, err)
	}

	if err == nil {
		resp.Body = &answer{resp.Body}
	}
	return resp, err
}

// outgoing is the body of a request. A transport may go on to read it after
// the store has answered; what it is made of can be used again once it is
// closed.
type outgoing struct {
	io.Reader
	ended   atomic.Bool
	closing sync.Once
	closed  chan struct{}
}

func (o *outgoing) Read(p []byte) (int, error) {
	n, err := o.Reader.Read(p)
	if err == io.EOF { // bare, as every io.Reader must say it
		o.ended.Store(true)
	}
	return n, err
}

// Close keeps the promise of http.RoundTripper, to close the body in any case.
func (o *outgoing) Close() error {
	o.closing.Do(func() { close(o.closed) })
	return nil
}

func (o *outgoing) wait(ctx context.Context) {
	select {
	case <-o.closed:
	case <-ctx.Done():
	}
}

// answer is a body that tells a connection that broke from a stored object
// that is too short. The cause is not wrapped: an unexpected EOF is what
// readers take for the latter.
type answer struct{ io.ReadCloser }

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // bare, as every io.Reader must say it
		err = fmt.Errorf("%w: it broke off: %s", ErrUnanswered, err.Error())
	}
	return n, err
}

// Unchanged looks at the object right before it is overwritten, where the
// store knows no condition. What a client writes in between is overwritten
// too.
func (s *Store) Unchanged(ctx context.Context, obj crypt.Object, etag string) error {
	resp, err := s.Do(NewRequest(ctx, http.MethodHead, obj, "", nil, nil))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.Header.Get("Etag") != etag {
		return ErrChanged
	}
	return nil
}

// Payload is a request body of known length.
type Payload struct {
	Body   io.Reader
	Length int64
}

// NewRequest returns a request for an object, with a query that is encoded
// already.
func NewRequest(
	ctx context.Context,
	method string,
	obj crypt.Object,
	query string,
	header http.Header,
	p *Payload,
) *http.Request {
	u := &url.URL{Path: "/" + obj.Bucket + "/" + obj.Key, RawQuery: query}
	u.RawPath = sigv4.EscapePath(u.Path)
	if header == nil {
		header = make(http.Header)
	}
	r := &http.Request{Method: method, URL: u, Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	if p != nil {
		r.Body, r.ContentLength = &outgoing{Reader: p.Body, closed: make(chan struct{})}, p.Length
	}
	return r.WithContext(ctx)
}

// maxAnswer bounds the store's documents, in bytes.
const maxAnswer = 1 << 20

// Ask sends a request and returns the document in the answer. S3 begins to
// answer copies and completions before it is done with them, so that a failure
// can come with status 200.
func (s *Store) Ask(
	ctx context.Context,
	method string,
	obj crypt.Object,
	query string,
	header http.Header,
	p *Payload,
) ([]byte, error) {
	resp, err := s.Do(NewRequest(ctx, method, obj, query, header, p))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(io.LimitReader(resp.Body, maxAnswer)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	return body.Bytes(), lateError(body.Bytes())
}

// lateError reads an error document that came with a good status. Whatever it
// says, the request can be made again.
func lateError(body []byte) error {
	var doc struct {
		XMLName       xml.Name
		Code, Message string
	}
	if err := xml.Unmarshal(body, &doc); err != nil || doc.XMLName.Local != "Error" {
		return nil //nolint:nilerr // most answers have no document
	}
	return fmt.Errorf("%w: %s %s", ErrUnanswered, doc.Code, doc.Message)
}

// ETagOf reads the ETag element of a document.
func ETagOf(body []byte) (string, error) {
	var doc struct{ ETag string }
	if err := xml.Unmarshal(body, &doc); err != nil || doc.ETag == "" {
		return "", errors.Join(fmt.Errorf("%w answered without an ETag: %.200q", stored.ErrStore, body), err)
	}
	return doc.ETag, nil
}

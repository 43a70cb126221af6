// Package inplace rewrites stored objects under their own names. It is shared
// by the commands that move objects to another key and that encrypt plaintext
// objects.
//
// The only copy of an object may be overwritten. So the new object is written
// only after it was read again with a key that the KMS has unwrapped, and only
// over the object from which it was made. The store must honor a condition for
// that; see Abilities. A concurrent write of a client is kept.
//
//	config.go   Config: the store, the keys, and options
//	inplace.go  requests to the store, and when they are repeated
//	confirm.go  telling a fault of an object from an object that is being overwritten
//	tags.go     copying an object's tags
//	upload.go   multipart uploads
//	send.go     sending requests, and recognizing answers that are not the store's
//
// There is no example: it needs a store. The tests show its use.
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
	// ErrChanged means that the object has changed since it was read.
	ErrChanged = errors.New("the object has changed")
	// ErrUnanswered means that the store could not be reached, or broke the
	// connection.
	ErrUnanswered = errors.New("the store does not answer")
)

// tries is how many attempts an object gets if it changes or the store
// fails. pause is the first pause between attempts.
const (
	tries = 4
	pause = 250 * time.Millisecond
)

// awayPause is the first pause while a KMS does not answer, longAwayPause
// the longest.
const (
	awayPause     = time.Second
	longAwayPause = 30 * time.Second
)

// Insist repeats attempts at an object until one succeeds or fails
// permanently. If the object does not exist, attempt returns the outcome
// Gone and the store's answer.
//
// If a KMS does not answer, the object is not at fault: Insist waits until
// the KMS answers or ctx ends. away, if not nil, is called with the error
// before each such wait.
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
		if r, err = attempt(observe(ctx)); r.Outcome == walk.Gone || !again(err) || ctx.Err() != nil {
			break
		}

		next := pause << i
		if isAway(err) {
			if away != nil {
				away(err)
			}
			next, wait = wait, min(2*wait, longAwayPause)
		} else if i++; i == tries {
			break
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
			err = errors.New("not found under its listed name, which has characters that XML does not allow")
		}
	}
	if err != nil {
		r.Outcome, r.Err = walk.Failed, err
	}
	return r
}

// again reports whether another attempt may succeed. After the first
// request, a 404 means that the object was deleted in the meantime.
func again(err error) bool {
	if final := (finalError{}); errors.Is(err, errTried) || errors.As(err, &final) {
		return false
	}
	switch stored.StatusOf(err) {
	case http.StatusNotFound, http.StatusPreconditionFailed, http.StatusConflict:
		return true
	}
	return errors.Is(err, ErrChanged) || errors.Is(err, stored.ErrOverwritten) || falters(err) || isAway(err)
}

// Final returns err as an error after which Insist does not try again.
func Final(err error) error { return finalError{err} }

type finalError struct{ error }

func (f finalError) Unwrap() error { return f.error }

// isAway reports whether a KMS does not answer, or is throttling.
func isAway(err error) bool { return kms.IsUnreachable(err) || kms.IsThrottled(err) }

// falters reports whether the store is overloaded or cannot be reached.
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

// errTried means that a part of the work was tried often enough, so that the
// whole need not be repeated.
var errTried = fmt.Errorf("%d attempts", tries)

// Retry repeats attempts at a part of an object while the store fails.
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

// Store sends requests to the store.
type Store struct {
	Send      Sender
	ETagIsMD5 bool // see Abilities
}

// Do sends a request. If the store has not answered, the error wraps
// ErrUnanswered.
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
		s.note(r, resp)
		resp.Body = &answer{resp.Body}
	}
	return resp, err
}

// outgoing is the body of a request. A transport may still read it after the
// store has answered. What it reads from can be reused after Close.
type outgoing struct {
	io.Reader
	ended   atomic.Bool
	closing sync.Once
	closed  chan struct{}
}

func (o *outgoing) Read(p []byte) (int, error) {
	n, err := o.Reader.Read(p)
	if err == io.EOF { // unwrapped, as readers return it
		o.ended.Store(true)
	}
	return n, err
}

// Close is always called: http.RoundTripper guarantees it.
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

// answer is the body of an answer. It distinguishes a broken connection from
// a stored object that is too short. It does not wrap the cause, because
// readers take an unexpected EOF for the latter.
type answer struct{ io.ReadCloser }

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // Read must return io.EOF unwrapped
		err = fmt.Errorf("%w: the connection broke: %s", ErrUnanswered, err.Error())
	}
	return n, err
}

// Unchanged checks the object right before it is overwritten, if the store
// does not honor a condition. A client's write in between is lost.
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

// NewRequest returns a request for an object. query must be encoded.
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

// maxAnswer limits the store's documents, in bytes.
const maxAnswer = 1 << 20

// Ask sends a request and returns the document in the answer. S3 begins to
// answer copies and completions before they are done, so a failure can come
// with status 200.
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

// lateError returns the error in a document that came with status 200. The
// request can always be repeated.
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

// ETagOf parses the ETag element of a document.
func ETagOf(body []byte) (string, error) {
	var doc struct{ ETag string }
	if err := xml.Unmarshal(body, &doc); err != nil || doc.ETag == "" {
		return "", errors.Join(fmt.Errorf("%w answered without an ETag: %.200q", stored.ErrStore, body), err)
	}
	return doc.ETag, nil
}

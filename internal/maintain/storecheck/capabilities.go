package storecheck

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // most stores use MD5 for ETags
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/capability"
)

// Capabilities finds out what the store can do. If something cannot be found
// out, its answer is Unknown, and the error says why. Call Clean afterwards.
func (p *Probe) Capabilities(ctx context.Context) (capability.Set, error) {
	var set capability.Set
	first, err := p.putText(ctx, p.name, nil)
	if err != nil {
		return set, err // nothing else would work
	}
	sum := md5.Sum(text) //nolint:gosec // ETags of most stores
	set[capability.MD5ETags] = capability.AnswerOf(
		first.header.Get("Etag") == `"`+hex.EncodeToString(sum[:])+`"`,
	)

	var errs []error
	for _, find := range []func(context.Context, *capability.Set) error{
		p.findTrailer,
		p.findCutBodies,
		p.findPutConditions,
		p.findCopyConditions,
		p.findDeleteCondition,
		p.findPartChecksums,
		p.findCompletion,
		p.findMarker,
		p.findKeys,
	} {
		if err := find(ctx, &set); err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return set, errors.Join(errs...)
}

// findTrailer sends the object with a checksum trailer, and reads it: a store
// that does not know the framing refuses it, or takes it for a part of the
// object.
func (p *Probe) findTrailer(ctx context.Context, set *capability.Set) error {
	key := p.name + "-trailer"
	q := p.putting(key, nil, text)
	q.trailer = true
	put, err := p.do(ctx, q)
	switch {
	case err != nil:
		return err
	case put.status == http.StatusForbidden:
		return put.err()
	case put.status >= 300 && put.status < 500, put.status == http.StatusNotImplemented:
		set[capability.Trailer] = capability.No // it has taken the same body without a trailer
		return nil
	case put.status >= 500:
		return put.err()
	}

	got, err := p.want(ctx, http.StatusOK, request{method: http.MethodGet, path: p.path(key)})
	if err != nil {
		return err
	}
	set[capability.Trailer] = capability.AnswerOf(bytes.Equal(got.body, text))
	return nil
}

// findCutBodies sends a body that ends before its Content-Length. Only the
// last bytes are missing, as when the proxy finds a wrong checksum at the
// end. It does not use a trailer, with which no store keeps such a body.
func (p *Probe) findCutBodies(ctx context.Context, set *capability.Set) error {
	const size, missing = 1 << 20, 16
	key := p.name + "-cut"
	p.cut = true
	short := io.MultiReader(bytes.NewReader(make([]byte, size-missing)), failingReader{})
	if _, err := p.send(ctx, p.cfg.Send, p.putting(key, nil, nil), short, size); err == nil {
		return errors.New("the store answered before it had the whole body")
	}

	// A store that keeps the body does so after the connection has ended.
	for range cutTries {
		select {
		case <-time.After(cutPause):
		case <-ctx.Done():
			return ctx.Err()
		}
		there, err := p.exists(ctx, key)
		if err != nil {
			return err
		}
		if there {
			p.cut = false
			set[capability.CutBodies] = capability.No
			return nil
		}
	}
	p.cut = false
	set[capability.CutBodies] = capability.Yes
	return nil
}

// A store has half a second to keep a body that was cut.
const (
	cutTries = 5
	cutPause = 100 * time.Millisecond
)

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("cut on purpose") }

// exists reports whether an object exists. If the proxy must not list the
// bucket, S3 answers 403 for an object that does not.
func (p *Probe) exists(ctx context.Context, key string) (bool, error) {
	got, err := p.do(ctx, request{method: http.MethodHead, path: p.path(key)})
	switch {
	case err != nil:
		return false, err
	case got.status < 300:
		return true, nil
	case got.status < 500:
		return false, nil
	default:
		return false, fmt.Errorf("HEAD %s: %w", p.path(key), got.err())
	}
}

// findMarker stores an empty object whose key ends in a slash.
func (p *Probe) findMarker(ctx context.Context, set *capability.Set) error {
	const name = "X-Amz-Meta-Cmek-Check"
	key := p.name + "-marker/"
	put, err := p.do(ctx, p.putting(key, http.Header{name: {"1"}}, nil))
	if err != nil {
		return err
	}
	if put.status >= 300 {
		return fmt.Errorf("storing a directory marker: %w", put.err())
	}
	head, err := p.want(ctx, http.StatusOK, request{method: http.MethodHead, path: p.path(key)})
	if err != nil {
		return err
	}
	set[capability.MarkerMetadata] = capability.AnswerOf(head.header.Get(name) == "1")
	return nil
}

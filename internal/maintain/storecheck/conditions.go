package storecheck

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // most stores use MD5 for ETags
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// neverAnETag is the ETag of no object.
const neverAnETag = `"00000000000000000000000000000000"`

// Abilities tests which conditions on writes the store honors, and removes
// what it has written.
func Abilities(ctx context.Context, cfg Config) (inplace.Abilities, error) {
	p := New(cfg)
	a, err := p.abilities(ctx)
	if _, removal := p.Remove(context.WithoutCancel(ctx)); removal != nil && err == nil {
		err = fmt.Errorf("removing %s: %w", p.name, removal)
	}
	return a, err
}

func (p *Probe) abilities(ctx context.Context) (a inplace.Abilities, err error) {
	first, err := p.want(ctx, http.StatusOK, http.MethodPut, p.path(p.name), nil, text)
	if err != nil {
		return a, err
	}
	if a.PutIfMatch, err = p.refuses(ctx, http.MethodPut, ifMatch(), text); err != nil {
		return a, err
	}

	header := ifMatch()
	header.Set("X-Amz-Copy-Source", sigv4.EscapePath(p.path(p.name)))
	header.Set("X-Amz-Metadata-Directive", "REPLACE")
	if a.CopyIfMatch, err = p.refuses(ctx, http.MethodPut, header, nil); err != nil {
		return a, err
	}

	path := p.path(p.name)
	upload, err := p.createUpload(ctx, path)
	if err != nil {
		return a, err
	}
	defer func() { _ = p.abort(ctx, path, upload) }() // a completed upload no longer exists

	sent, err := p.sendPart(ctx, path, upload, 1, text)
	if err != nil {
		return a, err
	}
	sum := md5.Sum(text) //nolint:gosec // ETags of most stores
	quoted := `"` + hex.EncodeToString(sum[:]) + `"`
	a.ETagIsMD5 = first.header.Get("Etag") == quoted && sent.ETag == quoted

	got, err := p.complete(ctx, path, upload, []part{sent}, ifMatch())
	if err != nil {
		return a, err
	}
	a.CompleteIfMatch, err = refused(got)
	return a, err
}

func ifMatch() http.Header { return http.Header{"If-Match": {neverAnETag}} }

// refuses reports whether a write of the probe's object is refused because
// of the condition in header.
func (p *Probe) refuses(ctx context.Context, method string, header http.Header, body []byte) (bool, error) {
	got, err := p.do(ctx, method, p.path(p.name), header, bytes.NewReader(body), int64(len(body)))
	if err != nil {
		return false, err
	}
	return refused(got)
}

// refused reports whether a write was refused because of its condition. A
// store that does not know the condition may ignore it or return an error.
func refused(got reply) (bool, error) {
	switch {
	case got.status == http.StatusPreconditionFailed:
		return true, nil
	case got.refuse == nil,
		got.status == http.StatusNotImplemented,
		got.status == http.StatusBadRequest,
		got.status == http.StatusMethodNotAllowed:
		return false, nil
	default:
		return false, got.refuse
	}
}

// IfNoneMatch tests whether the store honors the condition with which
// clients create an object only if it does not exist.
func (p *Probe) IfNoneMatch(ctx context.Context) (string, error) {
	got, err := p.do(
		ctx,
		http.MethodPut,
		p.path(p.name),
		http.Header{"If-None-Match": {"*"}},
		bytes.NewReader(text),
		int64(len(text)),
	)

	switch {
	case err != nil:
		return "", err
	case got.status == http.StatusPreconditionFailed:
		return "honored", nil
	case got.status == http.StatusOK:
		return "IGNORED by this store: conditional writes give no protection", nil
	default:
		return fmt.Sprintf("not supported (%d)", got.status), nil
	}
}

// IfMatch tests which writes the store refuses if the object that they would
// overwrite does not have the ETag in If-Match.
func (p *Probe) IfMatch(ctx context.Context) (string, error) {
	a, err := p.abilities(ctx)
	if err != nil {
		return "", err
	}

	var held, ignored []string
	for _, write := range []struct {
		name string
		held bool
	}{{"PutObject", a.PutIfMatch}, {"CopyObject", a.CopyIfMatch}, {"CompleteMultipartUpload", a.CompleteIfMatch}} {
		if write.held {
			held = append(held, write.name)
		} else {
			ignored = append(ignored, write.name)
		}
	}

	switch {
	case len(ignored) == 0:
		return "honored by all writes", nil
	case len(held) == 0:
		return "IGNORED by this store", nil
	default:
		return "honored by " + strings.Join(held, ", ") + "; not by " + strings.Join(ignored, ", "), nil
	}
}

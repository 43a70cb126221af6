package storecheck

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// request is a request of the probe.
type request struct {
	method string
	path   string // /bucket/key?query, not escaped
	header http.Header
	body   []byte
	// trailer sends the body with a checksum trailer.
	trailer bool
}

// reply is an answer of the store. A refusal has neither header nor body.
type reply struct {
	status int
	header http.Header
	body   []byte
	refuse error // the error, if the store refused the request
}

// maxBody limits what is read of an answer, in bytes.
const maxBody = 1 << 20

// do sends a request. A refusal of the store is a reply and not an error.
func (p *Probe) do(ctx context.Context, q request) (reply, error) {
	send := p.cfg.Send
	if q.trailer {
		send = p.cfg.SendTrailer
	}
	return p.send(ctx, send, q, bytes.NewReader(q.body), int64(len(q.body)))
}

func (p *Probe) send(
	ctx context.Context,
	send inplace.Sender,
	q request,
	body io.Reader,
	length int64,
) (reply, error) {
	path, query, _ := strings.Cut(q.path, "?")
	u := url.URL{Scheme: "http", Host: "origin", Path: path, RawQuery: query}
	r, err := http.NewRequestWithContext(ctx, q.method, u.String(), body)
	if err != nil {
		return reply{}, err
	}
	if q.header != nil {
		r.Header = q.header.Clone()
	}
	r.ContentLength = length
	if length == 0 {
		r.Body = http.NoBody
	}

	resp, err := send(r)
	if status := stored.StatusOf(err); status != 0 {
		return reply{status: status, refuse: err}, nil
	}
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()

	if id := resp.Header.Get("X-Amz-Version-Id"); id != "" {
		p.made(leftover{path: path, version: id})
	}
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(io.LimitReader(resp.Body, maxBody)); err != nil {
		return reply{}, err
	}
	return reply{status: resp.StatusCode, header: resp.Header, body: answer.Bytes()}, nil
}

// want is do for a request that must have the given status.
func (p *Probe) want(ctx context.Context, status int, q request) (reply, error) {
	got, err := p.do(ctx, q)
	if err != nil {
		return reply{}, err
	}
	if got.status != status {
		if got.refuse == nil {
			return reply{}, fmt.Errorf("%s %s: want status %d: %w", q.method, q.path, status, got.err())
		}
		return reply{}, fmt.Errorf("%s %s: %w", q.method, q.path, got.refuse)
	}
	return got, nil
}

// err returns an answer as an error. If it is a refusal, the error has the
// status.
func (r reply) err() error {
	if r.refuse != nil {
		return r.refuse
	}
	return fmt.Errorf("the store answered %s", r.describe())
}

// describe describes an answer that is not a refusal, without its document:
// some stores answer 200 with an error in it.
func (r reply) describe() string {
	var doc struct {
		XMLName       xml.Name
		Code, Message string
	}
	switch err := xml.Unmarshal(r.body, &doc); {
	case err != nil || doc.XMLName.Local == "":
		return fmt.Sprintf("%d with %d bytes that are not an S3 document", r.status, len(r.body))
	case doc.Code != "":
		return strings.TrimSpace(fmt.Sprintf("%d with the error %.100s %.200s", r.status, doc.Code, doc.Message))
	default:
		return fmt.Sprintf("%d with a document %.100s", r.status, doc.XMLName.Local)
	}
}

// putText stores the probe's text under a key.
func (p *Probe) putText(ctx context.Context, key string, header http.Header) (reply, error) {
	return p.want(ctx, http.StatusOK, p.putting(key, header, text))
}

// putting returns the request that stores a body under a key, and notes that
// the object may exist.
func (p *Probe) putting(key string, header http.Header, body []byte) request {
	p.made(leftover{path: p.path(key)})
	return request{method: http.MethodPut, path: p.path(key), header: header, body: body}
}

// path returns the path of a request for a key, without cleaning it.
func (p *Probe) path(key string) string { return "/" + p.cfg.Bucket + "/" + key }

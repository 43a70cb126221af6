// Package storecheck tests what a store can do, with small objects that it
// removes afterwards. `cmekproxy check` prints the results. `cmekproxy rewrap`
// and `cmekproxy encrypt` use them to choose how they write.
//
//	storecheck.go  the probe: requests for its own objects, and simple checks
//	conditions.go  which conditions on writes the store honors
//	parts.go       multipart uploads, and their ETags
//	keys.go        whether the store takes keys literally or as paths
//
// There is no example: it needs a store. cmekproxy check shows its use.
package storecheck

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Config configures a Probe.
type Config struct {
	// Send sends a request to the store. If the answer is not a success, the
	// error has a method Status() int.
	Send inplace.Sender
	// Bucket is where the probe's objects are. If it is empty, only List
	// works.
	Bucket string
	// Prefix is the prefix of their keys.
	Prefix string
}

// Probe tests a store. If a check succeeds, it returns details for the user,
// or "". Probe is not safe for concurrent use.
type Probe struct {
	send   inplace.Sender
	bucket string
	name   string // the key of its object, and the prefix of its other keys

	versions []version // versions of its objects that the store has kept
}

// version is one version of an object of the probe.
type version struct{ path, id string }

// New returns a Probe whose objects have unique names.
func New(cfg Config) *Probe {
	return &Probe{send: cfg.Send, bucket: cfg.Bucket, name: cfg.Prefix + ".cmekproxy-check-" + rand.Text()}
}

// text is the content of the probe's object.
var text = []byte("written by cmekproxy to test the store; cmekproxy removes it afterwards")

// List lists the bucket, or all buckets if no bucket is set. It tests the
// credentials.
func (p *Probe) List(ctx context.Context) (string, error) {
	path := "/"
	if p.bucket != "" {
		path = "/" + p.bucket
	}
	_, err := p.want(ctx, http.StatusOK, http.MethodGet, path, nil, nil)
	return "", err
}

// Put stores the probe's object, with 2 KB of metadata. The other checks use
// this object.
func (p *Probe) Put(ctx context.Context) (string, error) {
	value := hex.EncodeToString(make([]byte, 1000))
	stored, err := p.want(
		ctx,
		http.StatusOK,
		http.MethodPut,
		p.path(p.name),
		http.Header{"X-Amz-Meta-Cmek-Check": {value}},
		text,
	)
	if err != nil {
		return "", err
	}

	head, err := p.want(ctx, http.StatusOK, http.MethodHead, p.path(p.name), nil, nil)
	if err != nil {
		return "", err
	}
	if head.header.Get("X-Amz-Meta-Cmek-Check") != value {
		return "", errors.New("metadata comes back altered")
	}

	return "ETag " + stored.header.Get("Etag"), nil
}

// Ranges reads ranges of the object that Put has stored.
func (p *Probe) Ranges(ctx context.Context) (string, error) {
	for header, want := range map[string][]byte{"bytes=3-9": text[3:10], "bytes=-5": text[len(text)-5:]} {
		got, err := p.want(
			ctx,
			http.StatusPartialContent,
			http.MethodGet,
			p.path(p.name),
			http.Header{"Range": {header}},
			nil,
		)
		if err != nil {
			return "", err
		}

		if !bytes.Equal(got.body, want) {
			return "", fmt.Errorf("range %s gave other bytes", header)
		}
	}

	return "", nil
}

// Cut tests what the proxy's writes depend on: a body that ends before its
// Content-Length is not kept. Only the last bytes are missing, as when the
// proxy finds a wrong checksum at the end.
func (p *Probe) Cut(ctx context.Context) (string, error) {
	const size, missing = 1 << 20, 16
	path := p.path(p.name + "-cut")
	short := io.MultiReader(bytes.NewReader(make([]byte, size-missing)), failingReader{})
	if _, err := p.do(ctx, http.MethodPut, path, nil, short, size); err == nil {
		return "", errors.New("the store answered before it had the whole body")
	}

	time.Sleep(time.Second) // a store that keeps the body does so after the connection has ended
	got, err := p.do(ctx, http.MethodHead, path, nil, nil, 0)
	if err != nil {
		return "", err
	}

	if got.status != http.StatusNotFound {
		_, err := p.do(ctx, http.MethodDelete, path, nil, nil, 0)
		return "", errors.Join(
			fmt.Errorf(
				"HEAD answered %d, not 404: a failed upload leaves an object behind; is origin.checksum_trailer off?",
				got.status,
			),
			err,
		)
	}

	return "", nil
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("cut on purpose") }

// Remove removes the object that Put has stored. If the bucket keeps
// versions, it also removes the versions of all the probe's objects, as far
// as it is allowed to.
func (p *Probe) Remove(ctx context.Context) (string, error) {
	_, err := p.want(ctx, http.StatusNoContent, http.MethodDelete, p.path(p.name), nil, nil)
	for _, v := range p.versions {
		_, _ = p.do(ctx, http.MethodDelete, v.path+"?"+url.Values{"versionId": {v.id}}.Encode(), nil, nil, 0)
	}
	p.versions = nil
	return "", err
}

// reply is an answer of the store. A refusal has neither header nor body.
type reply struct {
	status int
	header http.Header
	body   []byte
	refuse error // the error, if the store refused the request
}

// String describes an answer in an error message.
func (r reply) String() string {
	if r.refuse != nil {
		return r.refuse.Error()
	}
	return fmt.Sprintf("the store answered %d: %.300s", r.status, r.body)
}

// maxBody limits what is read of an answer, in bytes.
const maxBody = 64 << 10

// do sends a request for /bucket/key?query. A refusal of the store is a
// reply and not an error.
func (p *Probe) do(
	ctx context.Context,
	method, path string,
	header http.Header,
	body io.Reader,
	length int64,
) (reply, error) {
	path, query, _ := strings.Cut(path, "?")
	r, err := http.NewRequestWithContext(
		ctx,
		method,
		(&url.URL{Scheme: "http", Host: "origin", Path: path, RawQuery: query}).String(),
		body,
	)
	if err != nil {
		return reply{}, err
	}

	if header != nil {
		r.Header = header
	}
	r.ContentLength = length

	resp, err := p.send(r)
	if status := stored.StatusOf(err); status != 0 {
		return reply{status: status, refuse: err}, nil
	}
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()

	if id := resp.Header.Get("X-Amz-Version-Id"); id != "" && method != http.MethodHead && method != http.MethodGet {
		p.versions = append(p.versions, version{path, id})
	}

	var answer bytes.Buffer
	if _, err := answer.ReadFrom(io.LimitReader(resp.Body, maxBody)); err != nil {
		return reply{}, err
	}
	return reply{status: resp.StatusCode, header: resp.Header, body: answer.Bytes()}, nil
}

// want is do for a request that must have the given status.
func (p *Probe) want(
	ctx context.Context,
	status int,
	method, path string,
	header http.Header,
	body []byte,
) (reply, error) {
	got, err := p.do(ctx, method, path, header, bytes.NewReader(body), int64(len(body)))
	if err != nil {
		return reply{}, err
	}
	if got.status != status {
		return reply{}, fmt.Errorf("%s %s: want status %d: %s", method, path, status, got)
	}
	return got, nil
}

// path returns the path of a request for a key, without cleaning it.
func (p *Probe) path(key string) string { return "/" + p.bucket + "/" + key }

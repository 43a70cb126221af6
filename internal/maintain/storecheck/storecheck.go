// Package storecheck finds out what a store can do, with small objects that it
// removes afterwards. The proxy does so at the first use of a store,
// `cmekproxy check` prints the results, and `cmekproxy rewrap` and `cmekproxy
// encrypt` use them to choose how they write.
//
//	storecheck.go    the probe, and simple checks
//	requests.go      requests for the probe's own objects
//	clean.go         removes them, also those of a probe that was killed
//	capabilities.go  which of the capabilities the store has
//	conditions.go    which conditions on requests the store honors
//	keys.go          whether the store uses keys unchanged
//	parts.go         multipart uploads, and their ETags
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
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
)

// Config configures a Probe.
type Config struct {
	// Send sends a request to the store, with the body as it is. If the
	// answer is not a success, the error has a method Status() int.
	Send inplace.Sender
	// SendTrailer does the same, but sends a body in aws-chunked framing with
	// a checksum trailer, and creates multipart uploads with its algorithm.
	SendTrailer inplace.Sender
	// Bucket is where the probe's objects are. If it is empty, only List
	// works.
	Bucket string
	// Prefix is the prefix of their keys.
	Prefix string
}

// Probe tests a store. If a check succeeds, it returns details for the user,
// or "". Probe is not safe for concurrent use.
type Probe struct {
	cfg  Config
	name string // the key of its object, and the prefix of its other keys

	// What may exist in the store, in the order in which it was created.
	created []leftover
	cut     bool // the store may still be about to keep a body that was cut
}

// SettingError is an error that a change of the configuration mends.
type SettingError struct {
	err    error
	change string
}

func (e *SettingError) Error() string { return e.err.Error() + ": " + e.change }
func (e *SettingError) Unwrap() error { return e.err }

// Advice says which setting to change, and how.
func (e *SettingError) Advice() string { return e.change }

// mark is in the names of all objects of probes.
const mark = ".cmekproxy-check-"

// New returns a Probe whose objects have unique names. Clean removes them.
func New(cfg Config) *Probe {
	return &Probe{cfg: cfg, name: cfg.Prefix + mark + rand.Text()}
}

// text is the content of the probe's object.
var text = []byte("written by cmekproxy to test the store; cmekproxy removes it afterwards")

// List lists the bucket, or all buckets if no bucket is set. It tests the
// credentials.
func (p *Probe) List(ctx context.Context) (string, error) {
	path := "/"
	if p.cfg.Bucket != "" {
		path = "/" + p.cfg.Bucket
	}
	_, err := p.want(ctx, http.StatusOK, request{method: http.MethodGet, path: path})
	return "", err
}

// Put stores the probe's object, with 2 KB of metadata.
func (p *Probe) Put(ctx context.Context) (string, error) {
	value := hex.EncodeToString(make([]byte, 1000))
	stored, err := p.putText(ctx, p.name, http.Header{"X-Amz-Meta-Cmek-Check": {value}})
	if err != nil {
		return "", err
	}

	head, err := p.want(ctx, http.StatusOK, request{method: http.MethodHead, path: p.path(p.name)})
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
		got, err := p.want(ctx, http.StatusPartialContent, request{
			method: http.MethodGet, path: p.path(p.name), header: http.Header{"Range": {header}},
		})
		if err != nil {
			return "", err
		}

		if !bytes.Equal(got.body, want) {
			return "", fmt.Errorf("range %s gave other bytes", header)
		}
	}

	return "", nil
}

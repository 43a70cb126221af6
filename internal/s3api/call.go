package s3api

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// call is one S3 request while it is served. Its Request is the client's, untouched.
type call struct {
	*http.Request
	w      *response
	id     string
	op     string // S3's name of the operation; "Unknown" until it is known
	route  *route
	start  time.Time
	secure bool // it came over TLS
	idle   *idle
	slot   slot
	cancel context.CancelCauseFunc // of the call's context

	bucket string
	key    string // raw: decoded exactly once
	query  url.Values
	upload uploadRef // of an operation on a multipart upload

	auth    *sigv4.Auth
	client  *access.Client
	payload io.Reader // the request body: framing removed, signature and checksums verified before io.EOF
	checks  *checksums
	form    *form // of a form upload; else nil

	customerKey []byte // that the client brings for the object; nil for none
	sourceKey   []byte // and for the source of a copy

	reseals bool // what the call reads is sealed under another data key

	aborted    bool   // the connection was cut, because the answer had begun
	keyID      string // KMS key that was used
	in         atomic.Int64
	kmsTime    atomic.Int64 // nanoseconds, as originTime
	originTime atomic.Int64
	originID   atomic.Pointer[string]      // the store's own request id, of its last answer
	cors       atomic.Pointer[http.Header] // what the store has said to the call's Origin; nil if it was not asked
}

func newCall(s *Server, w http.ResponseWriter, r *http.Request, cancel context.CancelCauseFunc) *call {
	c := &call{Request: r, id: newRequestID(), op: "Unknown", start: s.Now(), secure: s.overTLS(r), cancel: cancel}
	c.idle = newIdle(s.IdleTimeout, http.NewResponseController(w), s.Now)
	c.w = &response{ResponseWriter: w, idle: c.idle}
	return c
}

func (c *call) object() crypt.Object { return crypt.Object{Bucket: c.bucket, Key: c.key} }

func (c *call) clientName() string {
	if c.client == nil {
		return ""
	}
	return c.client.Name
}

// resource is what the request is about, for error answers.
func (c *call) resource() string {
	if c.key != "" {
		return "/" + c.bucket + "/" + c.key
	}
	return "/" + c.bucket
}

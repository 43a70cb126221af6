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
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// call is one S3 request while it is served. Its fields stand in groups, by the
// file that sets them.
type call struct {
	*http.Request // the client's; takeHoisted and takeForm replace header and body

	// The connection, and the time that the client has: newCall.
	w             response
	idle          *idle
	slot          slot                    // slots.go
	cancelContext context.CancelCauseFunc // of the call's context
	secure        bool                    // it came over TLS

	// What is asked for: request.go, the route by handle, the upload by
	// uploadref.go.
	route  *route // nil while it is not known
	bucket string
	key    string // raw: decoded exactly once
	query  url.Values
	upload uploadRef // of an operation on a multipart upload

	// Who asks: authorize.go, post.go.
	auth   *sigv4.Auth
	client *access.Client

	reader stored.Reader // of the store's objects, for this call: get.go

	// The body: openBody in request.go.
	payload io.Reader // framing removed, signature and checksums verified before io.EOF
	checks  *checksums
	posted  *form // of a form upload; else nil: post.go

	// SSE-C: customerkey.go.
	customerKey []byte // that the client brings for the object; nil for none
	sourceKey   []byte // and for the source of a copy
	reseals     bool   // what the call reads is sealed under another data key: the copies

	cors atomic.Pointer[http.Header] // what the store has said to the call's Origin; nil if it was not asked: cors.go

	logged
}

// logged is what the access log and the metrics say of a call.
type logged struct {
	id      string // newCall
	op      string // S3's name of the operation; "Unknown" until it is known: handle
	start   time.Time
	keyID   string // KMS key that was used: headers.go
	aborted bool   // the connection was cut, because the answer had begun: finish

	in         atomic.Int64           // bytes of the client's: connection.go
	kmsTime    atomic.Int64           // nanoseconds: RecordKMS
	originTime atomic.Int64           // nanoseconds, as originID: origin.go
	originID   atomic.Pointer[string] // the store's own request id, of its last answer
}

func newCall(s *Server, w http.ResponseWriter, r *http.Request, cancel context.CancelCauseFunc) *call {
	c := &call{Request: r, secure: s.overTLS(r), cancelContext: cancel}
	c.id, c.op, c.start = newRequestID(), "Unknown", s.Now()
	c.idle = newIdle(s.IdleTimeout, http.NewResponseController(w), s.Now)
	c.w.ResponseWriter, c.w.idle = w, c.idle
	c.reader = s.newReader(c)
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

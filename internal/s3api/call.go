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
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// call is one S3 request while it is being served. Fields are grouped by the
// file that sets them.
type call struct {
	server        *Server
	keys          *keyring.Keyring // with the keys and rules at the beginning: begin
	clients       access.View
	settings      *Settings
	*http.Request // the client's, but header and body may be replaced: takeHoisted, takeForm

	// The connection and its time limits: newCall.
	w             response
	idle          idle
	slot          slot                    // slots.go
	cancelContext context.CancelCauseFunc // cancels the call's context
	secure        bool                    // the request came over TLS

	// What the request asks for: request.go. The route is set by handle, the
	// upload by uploadref.go.
	route  *route // nil until it is known
	bucket string
	key    string // raw: decoded exactly once
	// The bucket is in the host, and not in the path.
	virtual bool
	query   url.Values
	upload  uploadRef // for operations on a multipart upload

	// The client: authorize.go, post.go.
	auth   *sigv4.Auth
	client *access.Client

	reader stored.Reader // reads stored objects for this call: get.go

	// The body: openBody in request.go.
	payload io.Reader // framing removed, signature and checksums verified before io.EOF
	checks  *checksums
	posted  *form   // nil unless it is a form upload: post.go
	peeked  *peeked // the whole body, if it was read ahead: put.go

	// Keys for SSE-C: customerkey.go.
	customerKey []byte // for the object; nil for none
	sourceKey   []byte // for the source of a copy; nil for none
	reseals     bool   // a copy that seals what it reads under another data key

	sourceBucket string // of the source of a copy; "" for no copy: copysource.go

	// The store's CORS headers for the request's Origin; nil if the store
	// was not asked: cors.go.
	cors atomic.Pointer[http.Header]

	logged
}

// logged has what the access log and the metrics record of a call.
type logged struct {
	id      string // newCall
	op      string // S3's name of the operation; "Unknown" until handle sets it
	start   time.Time
	remote  string              // the client's address, only for logs: newCall
	keyID   string              // id of the KMS key that was used: headers.go
	aborted bool                // finish cut the connection, because the response had begun
	trace   *tracing.ServerSpan // nil for none: trace.go

	in         atomic.Int64           // bytes from the client: connection.go
	kmsTime    atomic.Int64           // nanoseconds: RecordKMS
	originTime atomic.Int64           // nanoseconds: origin.go
	retries    atomic.Int64           // repeated requests to the store: RecordRetry
	originID   atomic.Pointer[string] // the store's request id, from its last answer: origin.go
}

func newCall(s *Server, w http.ResponseWriter, r *http.Request, cancel context.CancelCauseFunc) *call {
	c := &call{server: s, Request: r, cancelContext: cancel}
	s.begin(c)
	c.secure = c.overTLS()
	c.id, c.op, c.start = newRequestID(), "Unknown", s.Now()
	c.remote = s.TrustedProxies.Client(r.RemoteAddr, r.Header["X-Forwarded-For"])
	c.idle.begin(c.settings.IdleTimeout, *http.NewResponseController(w), s.Now)
	c.w.ResponseWriter, c.w.idle, c.w.count = w, &c.idle, s.Metrics
	c.reader = s.newReader(c)
	return c
}

// begin sets what the call uses until its end, even if it changes meanwhile.
func (s *Server) begin(c *call) {
	s.swapping.RLock()
	defer s.swapping.RUnlock()
	c.keys, c.clients, c.settings = s.Keys.Snapshot(), s.Clients.Now(), s.settings.Load()
}

func (c *call) object() crypt.Object { return crypt.Object{Bucket: c.bucket, Key: c.key} }

func (c *call) clientName() string {
	if c.client == nil {
		return ""
	}
	return c.client.Name
}

// resource returns the Resource element of error responses.
func (c *call) resource() string {
	if c.key != "" {
		return "/" + c.bucket + "/" + c.key
	}
	return "/" + c.bucket
}

package s3api

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/clientaddr"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
	"github.com/cmekproxy/cmekproxy/internal/storefault"
	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// Config configures a Server. Fields are required unless a comment says what
// zero or empty means; false is valid for all bools.
type Config struct {
	Origin       http.RoundTripper // the store
	Keys         *keyring.Keyring
	Clients      *access.Directory
	Settings     Settings
	UniformParts bool // the store refuses a small last part after parts of different sizes; see appendEnd
	Log          *zap.Logger
	Metrics      *metrics.Metrics
	Tracing      *tracing.Tracer // records requests; nil for none
	KeepAlive    time.Duration   // a slow operation such as a copy sends white space this often; 0: 10 s
	Admission    Admission       // limits concurrent requests further; nil for no further limits
	Now          func() time.Time
	Random       io.Reader // for salts and nonces

	// TrustedProxies may say the client's address, in X-Forwarded-For. It is
	// for logs only. Nil for none.
	TrustedProxies clientaddr.Proxies

	KeyNames keyname.Store // how the store treats object keys; empty: Capabilities says it
	// Capabilities returns what the store can do. It may ask the store about
	// what is needed, in the bucket of the request.
	Capabilities func(ctx context.Context, bucket string, needed ...capability.Capability) capability.Set
}

// Settings are the part of a Config that Server.Change can change.
type Settings struct {
	Domains       []string      // base domains of virtual-host-style requests; empty for path-style only
	VerifyHead    bool          // HEAD verifies the envelope's MAC, at the cost of a KMS request
	IdleTimeout   time.Duration // a transfer is ended when no byte moves for this long
	HeaderTimeout time.Duration // limit for reading a form up to its file; 0: 10 s
	MaxConcurrent int           // concurrent requests; more get 503 SlowDown
	MaxPerClient  int           // concurrent requests of one client; 0: three quarters of MaxConcurrent
	MaxUnsigned   int           // concurrent requests that are not authenticated; 0: MaxConcurrent/16
	Memory        int64         // bytes that requests may hold together; more get 503 SlowDown; 0: no limit
	MinRate       int64         // bytes per second that a client must move while the proxy waits for it; 0: no minimum
	// LocalTLS treats requests from loopback addresses as if they came over
	// TLS: a TLS terminator runs on this machine.
	LocalTLS bool
	// LogEvery is how many successful requests have one line in the access
	// log. 0 or 1 means that each has one, and a negative number that none
	// has. Requests that failed always have one.
	LogEvery int64
}

// Admission knows how much the proxy has to do.
type Admission interface {
	// Saturated reports whether the CPU is saturated.
	Saturated() bool
	// Refuse counts a refusal, and returns how long to wait before it is
	// answered.
	Refuse(now time.Time, reason string) (wait time.Duration)
}

// Server is the http.Handler of the S3 port.
type Server struct {
	Config
	matcher matcher
	layouts *stored.Cache // layouts of stored objects, shared by all calls
	uploads *uploadKeys
	renames renames

	signingKeys *sigv4.SigningKeys

	// swapping is held while what a request begins with changes: settings,
	// clients, keys and rules.
	swapping  sync.RWMutex
	settings  atomic.Pointer[Settings]
	successes atomic.Int64 // of which one in some is in the access log

	fast, slow, unsigned *pool
	budget               *budget
	trusted              trust         // the proxy's credentials at the store
	formBuffers          chan struct{} // has an element for each form that is in memory: postform.go

	// CheckAnswer and sentAs. Direct calls would be initialization cycles:
	// they need the routes, and the routes need the handlers.
	check  func(*http.Request, *http.Response) error
	sentAs func(*http.Request) *route
}

// New returns a Server.
func New(cfg Config) *Server {
	s := &Server{
		Config:  cfg,
		matcher: newMatcher(),
		layouts: stored.NewCache(),
		uploads: newUploadKeys(),
		renames: newRenames(),

		signingKeys: sigv4.NewSigningKeys(),

		formBuffers: make(chan struct{}, formBufferCount),
		check:       CheckAnswer,
		sentAs:      sentAs,
	}
	s.settings.Store(&cfg.Settings)
	s.pools()
	return s
}

// Change makes requests that begin from now on use other settings. change, if
// not nil, is called while no request begins: a request has the clients, keys
// and rules from before it, or those from after it, and never some of each.
func (s *Server) Change(next Settings, change func()) {
	s.swapping.Lock()
	defer s.swapping.Unlock()
	s.settings.Store(&next)
	if change != nil {
		change()
	}
	s.resize()
}

// CurrentSettings returns the settings of requests that begin now.
func (s *Server) CurrentSettings() Settings { return *s.settings.Load() }

// ServeHTTP serves one S3 request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.refuseEarly(w, r) {
		return
	}

	parent := r.Context()
	poisoned := parent.Err() != nil // by a deadline of the previous request; see idle
	if poisoned {
		parent = context.WithoutCancel(parent)
	}
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)

	c := newCall(s, w, r, cancel)
	c.w.close = poisoned
	defer s.leave(c) // after the error response, which may ask the store
	ctx, c.trace = s.Tracing.Start(ctx, r)
	c.Request = r.WithContext(context.WithValue(ctx, callKey{}, c))

	if r.Body == nil || r.Body == http.NoBody {
		c.idle.whole = true
	} else {
		c.Body = &clientBody{r.Body, &c.idle}
	}
	c.idle.beforeWrite()

	s.Metrics.InFlight.Inc()
	defer s.Metrics.InFlight.Dec()

	// net/http sends 100 Continue when the body is first read, and never for
	// an empty body. botocore expects it for empty bodies too. Without it,
	// botocore takes the final status for that of its next request.
	if r.ContentLength == 0 && strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
		w.WriteHeader(http.StatusContinue)
	}
	w.Header().Set("X-Amz-Request-Id", c.id)

	err := s.handleRecovering(c)
	c.wipeCustomerKeys()
	if err != nil && c.idle.isLate() {
		err = errors.Join(errIdle, err)
	}
	c.idle.stop()

	if cut := c.w.reopen(); cut != nil {
		err = cut
	}
	s.finishRecovering(c, err)
}

// handleRecovering calls handle and turns a panic into an error.
func (s *Server) handleRecovering(c *call) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return s.handle(c)
}

// handle runs the steps that all operations share. Each step may refuse the
// request, so their order matters.
func (s *Server) handle(c *call) error {
	if err := checkHeaderSize(c.Header); err != nil {
		return err
	}
	if err := c.locate(c.settings.Domains); err != nil {
		return err
	}

	row := s.matcher.find(c)
	if row != nil {
		c.op, c.route = row.op, row
		c.dropParameters()
	}
	if err := s.checkPathNames(c); err != nil {
		return err
	}

	s.addCORSHeaders(c)
	if row != nil && row.scope == unsigned {
		if err := s.enter(c, s.unsigned, holder{}); err != nil {
			return err
		}
		return row.serve(s, c)
	}

	if err := c.checkPlace(); err != nil {
		return err
	}
	if err := s.admit(c); err != nil {
		return err
	}

	if row == nil {
		return notImplemented(
			"The operation "+c.Method+" on "+c.resource(),
			"the proxy does not know this operation",
		)
	}

	// Before authorize, because a hoisted header may need a further grant.
	if err := c.takeHoisted(); err != nil {
		return err
	}
	if err := c.authorize(); err != nil {
		return err
	}
	if err := s.checkStoredName(c); err != nil {
		return err
	}

	if row.policy == refuse {
		return notImplemented(row.op, notes[row.op])
	}
	if err := c.checkNames(); err != nil {
		return err
	}

	if err := c.takeUpload(); err != nil {
		return err
	}
	if err := c.takeCustomerKeys(); err != nil {
		return err
	}

	if err := c.openBody(); err != nil {
		return err
	}
	return row.serve(s, c)
}

// admit authenticates the client and gives the call one of the client's
// slots.
func (s *Server) admit(c *call) error {
	if c.route == nil || c.route.flags&signedByForm == 0 {
		if err := s.authenticate(c); err != nil { // only computes, so it needs no slot
			return err
		}
		return s.enter(c, s.fast, holderOf(c.client))
	}

	if !isForm(c.Request) {
		return errNotForm()
	}

	if err := s.enter(c, s.unsigned, holder{}); err != nil {
		return err
	}
	stop := c.within(cmp.Or(c.settings.HeaderTimeout, defaultHeaderTimeout))
	err := s.authenticateForm(c)
	stop()

	if err != nil {
		return err
	}
	return s.enter(c, s.fast, holderOf(c.client))
}

const defaultHeaderTimeout = 10 * time.Second

// finish sends the error response, if err is not nil, then logs and counts
// the request.
//
// If the response has already begun, an error closes the connection. The
// client must not take a partial body for the whole one.
func (s *Server) finish(c *call, err error) {
	var answer *Error
	if err != nil {
		answer = asError(c.Context(), s.nameNotFound(c, err))
		s.mentionNames(c, answer)
		c.w.close = c.w.close || isCut(answer.Code)
		if c.w.status != 0 {
			c.aborted = true
		} else {
			c.clearEncryptionHeaders()
			answer.write(&c.w, c.Request, c.resource(), c.id)
		}
	}

	if c.aborted {
		// The call may have noticed a revoked key before its watcher did. The
		// records may take long, and meanwhile the client would read on.
		c.reset()
	}
	s.record(c, answer)
	if c.aborted {
		panic(http.ErrAbortHandler)
	}
}

// finishRecovering calls finish. If that panics, it logs the panic and
// closes the connection.
func (s *Server) finishRecovering(c *call, err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}

		if p != http.ErrAbortHandler { //nolint:errorlint // a sentinel value of net/http
			s.Log.Error(
				"request",
				zap.String("request_id", c.id),
				zap.String("operation", c.op),
				zap.String("cause", fmt.Sprintf("panic: %v\n%s", p, debug.Stack())),
			)
		}
		c.aborted = true
		c.endTrace("InternalError") // unless it has ended

		panic(http.ErrAbortHandler)
	}()

	s.finish(c, err)
}

// record writes the access log entry and updates the metrics. The entry has
// no header and no query, so it never holds a secret.
func (s *Server) record(c *call, answer *Error) {
	took := s.Now().Sub(c.start)
	code := ""
	if answer != nil {
		code = answer.Code
	}
	s.Metrics.Request(c.op, c.w.status, countedCode(code), took, c.exemplar())
	s.Metrics.RequestBy(c.clientName(), c.bucket, c.w.status, c.in.Load(), c.w.bytes)
	defer c.endTrace(countedCode(code))
	if c.succeeded(answer) && !s.logsSuccess(c.settings.LogEvery) {
		return
	}

	fields := append(
		make([]zap.Field, 0, maxLogFields),
		zap.String("request_id", c.id),
		zap.String("operation", c.op),
		zap.String("bucket", c.bucket),
		zap.String("key", c.key),
		zap.String("client", c.clientName()),
		zap.String("remote", c.remote),
		zap.Int("status", c.w.status),
		zap.Int64("bytes_in", c.in.Load()),
		zap.Int64("bytes_out", c.w.bytes),
		milliseconds("total_ms", took),
		milliseconds("kms_ms", time.Duration(c.kmsTime.Load())),
		milliseconds("origin_ms", time.Duration(c.originTime.Load())), // until the headers of the store's answers
	)

	if session := c.session(); session != "" {
		fields = append(fields, zap.String("session", session))
	}
	if c.keyID != "" {
		fields = append(fields, zap.String("kms_key", c.keyID))
	}

	if id := c.originID.Load(); id != nil {
		fields = append(fields, zap.String("origin_request_id", *id))
	}
	if retries := c.retries.Load(); retries > 0 {
		fields = append(fields, zap.Int64("origin_retries", retries))
	}
	if c.aborted {
		fields = append(fields, zap.Bool("aborted", true))
	}
	if id := c.trace.TraceID(); id != "" {
		fields = append(fields, zap.String("trace_id", id))
	}

	log := s.Log.Info
	if answer != nil {
		fields = append(fields, zap.String("code", code), zap.String("cause", cause(answer)))
		if answer.Status() >= http.StatusInternalServerError || answer.Code == "ObjectIntegrityError" {
			log = s.Log.Error
		}
	}

	log("request", fields...)
}

// succeeded reports whether nothing went wrong, not even at the first attempt.
func (c *call) succeeded(answer *Error) bool {
	return c.w.status < http.StatusBadRequest && !c.aborted && c.retries.Load() == 0 &&
		(answer == nil || answer.Status() < http.StatusBadRequest)
}

// logsSuccess reports whether a successful request is in the access log.
func (s *Server) logsSuccess(every int64) bool {
	switch {
	case every < 0:
		return false
	case every <= 1:
		return true
	default:
		return s.successes.Add(1)%every == 1
	}
}

// maxLogFields is the most fields of an entry in the access log.
const maxLogFields = 20

func milliseconds(name string, d time.Duration) zap.Field {
	return zap.Float64(name, float64(d.Microseconds())/1000)
}

func cause(e *Error) string {
	if e.cause != nil {
		return e.cause.Error()
	}
	return e.Message
}

// RecordKMS adds the time of a KMS request to the log entry of the S3
// request that ctx belongs to, if any.
func RecordKMS(ctx context.Context, took time.Duration) {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		c.kmsTime.Add(int64(took))
	}
}

// RecordRetry counts a repeated request to the store for the S3 request that
// ctx belongs to, if any. fault is why it is repeated.
func RecordRetry(ctx context.Context, fault storefault.Kind) {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		c.retries.Add(1)
		c.server.Metrics.OriginRetry(string(fault))
	}
}

type callKey struct{}

func newRequestID() string {
	var id [8]byte
	var text [2 * len(id)]byte
	rand.Read(id[:])
	hex.Encode(text[:], id[:])
	return string(text[:])
}

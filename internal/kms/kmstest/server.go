package kmstest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Config configures a Server. The zero value means a free loopback port and
// no state file.
type Config struct {
	// Listen is the address to listen on. Empty means 127.0.0.1 and a free
	// port.
	Listen string
	// Region and AccountID are used in all ARNs. Empty means us-east-1 and
	// 111122223333.
	Region, AccountID string
	// StateFile preserves keys with their policies and grants, and aliases,
	// across restarts. It contains unencrypted key material and has mode
	// 0600. Empty means none.
	StateFile string
	// Now is the clock for deletion dates. Nil means time.Now.
	Now func() time.Time
}

// Server implements the AWS KMS JSON 1.1 API
// (https://docs.aws.amazon.com/kms/latest/APIReference/Welcome.html) for
// symmetric keys, and two operations of STS; see sts.go. It is stricter than AWS so that mistakes of clients are
// noticed: it refuses unknown parameters. It checks that requests are
// signed but not that the signature is correct. The caller is the owner of
// the access key id in the request, whose principal in key policies and
// grants is UserARN.
type Server struct {
	impostorSwitch
	listener  net.Listener
	http      *http.Server
	served    chan struct{}
	closing   chan struct{}
	closeOnce sync.Once
	store     *store

	mu         sync.Mutex
	faults     Faults
	callCounts map[string]int
	second     time.Time // the current second for Faults.MaxPerSecond,
	sent       int       // and the number of requests served in it
}

// Start starts a server.
func Start(cfg Config) (*Server, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}

	keys, err := openStore(cfg)
	if err != nil {
		return nil, err
	}

	var lc net.ListenConfig
	listener, err := lc.Listen(context.Background(), "tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("kmstest: %w", err)
	}

	s := &Server{
		listener:   listener,
		served:     make(chan struct{}),
		closing:    make(chan struct{}),
		store:      keys,
		callCounts: make(map[string]int),
	}

	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(s.served)
		_ = s.http.Serve(listener) // returns ErrServerClosed
	}()

	return s, nil
}

// URL returns the endpoint for clients.
func (s *Server) URL() string { return "http://" + s.listener.Addr().String() }

// Region returns the region in all ARNs.
func (s *Server) Region() string { return s.store.region }

// Close stops the server and closes all connections, including those of
// hanging requests. Further calls do nothing.
func (s *Server) Close() (err error) {
	s.closeOnce.Do(func() {
		close(s.closing)
		err = s.http.Close()
		<-s.served
	})
	return err
}

// Calls returns the number of requests for each operation, including failed
// ones, and those for operations that the server does not have.
func (s *Server) Calls() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.callCounts)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == controlPath {
		s.serveControl(w, r)
		return
	}
	if s.impersonate(w) {
		return
	}

	id := make([]byte, 16)
	rand.Read(id)
	w.Header().Set("X-Amzn-Requestid", hex.EncodeToString(id))
	if isSTS(r) {
		s.serveSTS(w, r, hex.EncodeToString(id))
		return
	}

	out, err := s.serve(r)
	var refusal *apiError
	switch {
	case errors.Is(err, errDrop):
		panic(http.ErrAbortHandler)
	case errors.As(err, &refusal):
		w.Header().Set("X-Amzn-Errortype", refusal.code)
		reply(w, refusal.status(), map[string]string{"__type": refusal.code, "message": refusal.message})
	case err != nil:
		reply(w, http.StatusInternalServerError, map[string]string{"__type": "KMSInternalException"})
	default:
		reply(w, http.StatusOK, out)
	}
}

func (s *Server) serve(r *http.Request) (any, error) {
	name, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	s.mu.Lock()
	s.callCounts[name]++
	s.mu.Unlock()

	run := operations[name]
	if r.Method != http.MethodPost || r.URL.Path != "/" || !ok || run == nil {
		return nil, refuse("UnknownOperationException", "")
	}

	accessKeyID, err := checkSigned(r, "kms", s.store.region)
	if err != nil {
		return nil, err
	}

	if r.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
		return nil, refuse("SerializationException", "Unexpected Content-Type.")
	}

	decoder := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 64<<10))
	decoder.DisallowUnknownFields()

	if err := s.misbehave(r.Context(), name); err != nil {
		return nil, err
	}
	return run(s.store, s.store.user(accessKeyID), decoder)
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(status)
	if body != nil {
		_ = json.NewEncoder(w).Encode(body) // fails only if the client has left
	}
}

// apiError is an error with its AWS name.
type apiError struct{ code, message string }

func refuse(code, format string, args ...any) *apiError {
	return &apiError{code, fmt.Sprintf(format, args...)}
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

// status returns the HTTP status. It is 400 for all client errors,
// including NotFoundException and AccessDeniedException, as in AWS KMS.
func (e *apiError) status() int {
	switch e.code {
	case "KMSInternalException", "KeyUnavailableException":
		return http.StatusInternalServerError
	case "DependencyTimeoutException", "ServiceUnavailable":
		return http.StatusServiceUnavailable
	default:
		return http.StatusBadRequest
	}
}

var signedForm = regexp.MustCompile(`^AWS4-HMAC-SHA256 ` +
	`Credential=([^/ ,]+)/(\d{8})/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request, ?` +
	`SignedHeaders=([a-z0-9;-]+), ?Signature=[0-9a-f]{64}$`)

// checkSigned checks the form of the signature but not its value, and
// returns the access key id.
func checkSigned(r *http.Request, forService, region string) (accessKeyID string, err error) {
	auth := r.Header.Get("Authorization")
	if auth == "" {
		return "", refuse("MissingAuthenticationTokenException", "Missing Authentication Token")
	}

	form := signedForm.FindStringSubmatch(auth)
	if form == nil {
		return "", refuse("IncompleteSignatureException",
			"Authorization header is not of the form of Signature Version 4.")
	}

	date, scope, service, headers := form[2], form[3], form[4], ";"+form[5]+";"
	if service != forService || scope != region {
		return "", refuse("InvalidSignatureException",
			"Credential should be scoped to a valid region and to service '%s'.", forService)
	}

	signed := strings.Contains(headers, ";host;") && strings.Contains(headers, ";x-amz-date;") &&
		(strings.Contains(headers, ";x-amz-target;") || forService != "kms")
	if when := r.Header.Get("X-Amz-Date"); !signed || len(when) != len("20060102T150405Z") || when[:8] != date {
		return "", refuse("InvalidSignatureException", "host, x-amz-date and x-amz-target must be signed.")
	}

	return form[1], nil
}

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

// Config configures a Server. The zero value is a server on a free loopback
// port that keeps nothing.
type Config struct {
	// Listen is the address to listen on. Empty: 127.0.0.1 and a free port.
	Listen string
	// Region and AccountID stand in every ARN. Empty: us-east-1 and
	// 111122223333.
	Region, AccountID string
	// StateFile keeps keys, their policies and grants, and aliases across
	// restarts. It holds key material in clear, with mode 0600. Empty: none.
	StateFile string
	// Now is the clock that deletion dates go by. Nil: time.Now.
	Now func() time.Time
}

// Server speaks the AWS KMS JSON 1.1 API
// (https://docs.aws.amazon.com/kms/latest/APIReference/Welcome.html) for
// symmetric keys, and is stricter than AWS where a client's mistake should
// show: unknown parameters are refused. It checks that requests are signed,
// not that the signature is right: a caller is who has the access key id that
// is named in it, and the user UserARN by key policies and grants.
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
	second     time.Time // the running second of Faults.MaxPerSecond,
	sent       int       // and what was served in it
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
		_ = s.http.Serve(listener) // ends with ErrServerClosed
	}()

	return s, nil
}

// URL is the endpoint to give to a client.
func (s *Server) URL() string { return "http://" + s.listener.Addr().String() }

// Region is the region in every ARN.
func (s *Server) Region() string { return s.store.region }

// Close ends the server and all its connections, hanging requests included. A
// second Close does nothing.
func (s *Server) Close() (err error) {
	s.closeOnce.Do(func() {
		close(s.closing)
		err = s.http.Close()
		<-s.served
	})
	return err
}

// Calls returns how many requests each operation had, those that failed
// included.
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
	run := operations[name]
	if r.Method != http.MethodPost || r.URL.Path != "/" || !ok || run == nil {
		return nil, refuse("UnknownOperationException", "")
	}

	s.mu.Lock()
	s.callCounts[name]++
	s.mu.Unlock()
	accessKeyID, err := checkSigned(r, s.store.region)
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
		_ = json.NewEncoder(w).Encode(body) // the client is gone
	}
}

// apiError is an error by its AWS name.
type apiError struct{ code, message string }

func refuse(code, format string, args ...any) *apiError {
	return &apiError{code, fmt.Sprintf(format, args...)}
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

// status is 400 for every fault of the client, NotFoundException and
// AccessDeniedException included: that is what AWS KMS sends, whatever the
// names suggest.
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

var signedForm = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=([^/ ,]+)/(\d{8})/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request, ?` +
	`SignedHeaders=([a-z0-9;-]+), ?Signature=[0-9a-f]{64}$`)

// checkSigned checks the form of the signature, not the signature, and returns
// whose it claims to be.
func checkSigned(r *http.Request, region string) (accessKeyID string, err error) {
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
	if service != "kms" || scope != region {
		return "", refuse("InvalidSignatureException",
			"Credential should be scoped to a valid region and to service 'kms'.")
	}

	signed := strings.Contains(headers, ";host;") && strings.Contains(headers, ";x-amz-date;") &&
		strings.Contains(headers, ";x-amz-target;")
	if when := r.Header.Get("X-Amz-Date"); !signed || len(when) != len("20060102T150405Z") || when[:8] != date {
		return "", refuse("InvalidSignatureException", "host, x-amz-date and x-amz-target must be signed.")
	}

	return form[1], nil
}

package kmstest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"slices"
	"time"
)

// controlPath is the path of the server's control API, for loopback clients
// only. GET returns the faults and the calls so far, PUT sets the faults.
// Both bodies are JSON with the faults under "faults".
const controlPath = "/_control"

// Faults describes how a server misbehaves. The zero value means no faults.
// If there are several, they act in the order of the fields.
type Faults struct {
	// Operations are the AWS names of the affected operations. For example,
	// ["Decrypt"] is a KMS that generates keys but does not unwrap them.
	// Empty means all operations that use a key: GenerateDataKey, Encrypt,
	// Decrypt and ReEncrypt.
	Operations []string `json:"operations,omitempty"`
	// LatencyMS is a delay before each response, in milliseconds.
	LatencyMS int `json:"latency_ms,omitempty"`
	// Hang means that the server never responds.
	Hang bool `json:"hang,omitempty"`
	// Drop closes the connection without a response.
	Drop bool `json:"drop,omitempty"`
	// ThrottleNext is the number of requests to answer with
	// ThrottlingException.
	ThrottleNext int `json:"throttle_next,omitempty"`
	// MaxPerSecond is the rate above which requests get
	// ThrottlingException. 0 means no limit.
	MaxPerSecond int `json:"max_per_second,omitempty"`
	// Deny responds with AccessDeniedException, as after a change of the
	// key policy.
	Deny bool `json:"deny,omitempty"`
	// Fail responds with the error of this AWS name, such as
	// KMSInternalException. Empty means none.
	Fail string `json:"fail,omitempty"`
	// Skew responds with InvalidSignatureException and this message. Empty
	// means none.
	Skew string `json:"skew,omitempty"`
	// FailNext limits Fail and Skew to this number of requests. 0 means no
	// limit.
	FailNext int `json:"fail_next,omitempty"`
}

// SetFaults replaces the faults.
func (s *Server) SetFaults(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

// errDrop means that the connection must be closed without a response.
var errDrop = errors.New("drop the connection")

var keyOperations = []string{"GenerateDataKey", "Encrypt", "Decrypt", "ReEncrypt"}

// misbehave applies the faults, and returns the error to respond with, if
// any.
func (s *Server) misbehave(ctx context.Context, operation string) error {
	s.mu.Lock()
	f := s.faults
	affected := f.Operations
	if len(affected) == 0 {
		affected = keyOperations
	}

	if !slices.Contains(affected, operation) {
		s.mu.Unlock()
		return nil
	}

	err := s.decide(f)
	s.mu.Unlock()

	if f.Hang {
		select {
		case <-ctx.Done():
		case <-s.closing:
		}
		return errDrop
	}

	if f.LatencyMS > 0 {
		select {
		case <-time.After(time.Duration(f.LatencyMS) * time.Millisecond):
		case <-ctx.Done():
			return errDrop
		case <-s.closing:
			return errDrop
		}
	}

	return err
}

// decide applies the faults that have limits to a request. The caller holds
// s.mu.
func (s *Server) decide(f Faults) error {
	const slow = "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."
	if f.Drop {
		return errDrop
	}
	if f.ThrottleNext > 0 {
		s.faults.ThrottleNext--
		return refuse("ThrottlingException", slow)
	}

	if f.MaxPerSecond > 0 {
		if now := time.Now().Truncate(time.Second); !now.Equal(s.second) {
			s.second, s.sent = now, 0
		}
		if s.sent++; s.sent > f.MaxPerSecond {
			return refuse("ThrottlingException", slow)
		}
	}

	if f.Deny {
		return refuse("AccessDeniedException", "User: arn:aws:iam::%s:user/proxy is not authorized to perform this "+
			"operation because no resource-based policy allows it", s.store.account)
	}
	if f.Fail == "" && f.Skew == "" {
		return nil
	}

	if f.FailNext > 0 {
		if s.faults.FailNext--; s.faults.FailNext == 0 {
			s.faults.Fail, s.faults.Skew = "", ""
		}
	}
	if f.Skew != "" {
		return refuse("InvalidSignatureException", "%s", f.Skew)
	}

	return refuse(f.Fail, "as asked for")
}

type control struct {
	Faults Faults         `json:"faults"`
	Calls  map[string]int `json:"calls,omitempty"`
}

func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		http.Error(w, "loopback clients only", http.StatusForbidden)
		return
	}

	switch r.Method {
	case http.MethodGet:
	case http.MethodPut:
		var c control
		decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
		decoder.DisallowUnknownFields()

		if err := decoder.Decode(&c); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}

		unknown := func(name string) bool { return operations[name] == nil }
		if i := slices.IndexFunc(c.Faults.Operations, unknown); i >= 0 { // such a fault would have no effect
			http.Error(w, "no operation "+c.Faults.Operations[i], http.StatusBadRequest)
			return
		}

		s.SetFaults(c.Faults)
	default:
		http.Error(w, "GET or PUT", http.StatusMethodNotAllowed)
		return
	}

	s.mu.Lock()
	c := control{s.faults, s.callCounts}
	body, err := json.Marshal(c)
	s.mu.Unlock()

	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}

	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n'))
}

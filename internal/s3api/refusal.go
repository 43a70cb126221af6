package s3api

import (
	"context"
	"net/http"
	"strings"
	"time"
)

// refusal is why a request gets 503 SlowDown. It is a label of a metric.
type refusal string

const (
	noSlot  refusal = "slots" // all slots of the pool are in use
	noShare refusal = "share" // the client has its share of the slots
	noCPU   refusal = "cpu"   // the CPU is saturated

	noMemory refusal = "memory" // the requests that run may hold all the memory
)

// refuseEarly refuses a request for which there is no slot, before anything
// is done for it, and reports whether it did. The access key is not verified
// yet, so it refuses only what enter would refuse too. There may be thousands
// of such requests a second, so they are counted and not logged one by one.
func (s *Server) refuseEarly(w http.ResponseWriter, r *http.Request) bool {
	key := claimedKey(r)
	if key == "" {
		return false
	}
	client, ok := s.Clients.Now().Client(key)
	if !ok {
		return false
	}
	h := holderOf(client)
	why := s.fast.full(h, ageOf(r))
	switch {
	case why != "":
	case s.budget.full(h.name, s.fast.most(h), s.fast.limit()):
		why = noMemory
	default:
		return false
	}

	id := newRequestID()
	w.Header().Set("X-Amz-Request-Id", id)
	s.refused(r.Context(), why).write(w, r, r.URL.Path, id)
	return true
}

// claimedKey returns the access key in the Authorization header; "" if there
// is none. Presigned requests are refused later.
func claimedKey(r *http.Request) string {
	_, credential, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	key, _, _ := strings.Cut(credential, "/")
	return key
}

// refused returns the error for a request without a slot: after a while if
// there are many.
func (s *Server) refused(ctx context.Context, why refusal) *Error {
	s.Metrics.Refused(string(why))
	if s.Admission == nil {
		return errBusy()
	}
	if wait := s.Admission.Refuse(s.Now(), string(why)); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return errBusy()
}

func errBusy() *Error {
	return &Error{Code: "SlowDown", Message: "Please reduce your request rate.", RetryAfter: retryAfter}
}

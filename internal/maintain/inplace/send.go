package inplace

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/stored"
	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// Sender sends a request to the store; see stored.Reader.Send.
type Sender = func(*http.Request) (*http.Response, error)

// StoreError is an error response of the store.
type StoreError struct {
	HTTPStatus int
	Code       string // S3's code, or the text of the status if there is none
	Message    string
	Fault      *storefault.Error // why, if the request is not at fault; else nil
}

func (e *StoreError) Error() string {
	text := strings.TrimSpace(fmt.Sprintf("the store answered %d %s %s", e.HTTPStatus, e.Code, e.Message))
	if e.Fault != nil && e.Fault.Hint != "" {
		text += "; " + e.Fault.Hint
	}
	return text
}

func (e *StoreError) Unwrap() error {
	if e.Fault == nil {
		return nil // not a nil *storefault.Error in an interface
	}
	return e.Fault
}

// Status returns the HTTP status; package stored uses it.
func (e *StoreError) Status() int { return e.HTTPStatus }

// How often a request that only reads is sent if the store does not answer,
// and the first pause. The pause doubles each time.
const (
	sendTries = 5
	sendPause = 200 * time.Millisecond
)

// maxRefusal limits what is read of an error response, in bytes.
const maxRefusal = 64 << 10

// NewSender returns a Sender that uses a transport. If the answer is not a
// success, the error is a *StoreError.
//
// checkAnswer and checkRefusal return an error for an answer that is not
// S3's, but comes from something between the proxy and the store. Requests
// that only read are repeated if the store is overloaded: among millions,
// some always fail.
func NewSender(
	transport http.RoundTripper,
	checkAnswer func(*http.Request, *http.Response) error,
	checkRefusal func(r *http.Request, status int, code string, body []byte) error,
) Sender {
	return repeated(func(r *http.Request) (*http.Response, error) {
		resp, err := transport.RoundTrip(r)
		if err != nil {
			return nil, err
		}

		if resp.StatusCode < 300 {
			if err := checkAnswer(r, resp); err != nil {
				_ = resp.Body.Close()
				return nil, notTheStore(err)
			}
			return resp, nil
		}

		defer resp.Body.Close()
		var doc struct{ Code, Message string }
		var body bytes.Buffer
		_, _ = body.ReadFrom(io.LimitReader(resp.Body, maxRefusal))
		_ = xml.Unmarshal(body.Bytes(), &doc) // the answer to a HEAD has no body

		if err := checkRefusal(r, resp.StatusCode, doc.Code, body.Bytes()); err != nil {
			return nil, notTheStore(err)
		}
		fault := storefault.OfAnswer(storefault.Answer{
			Method: r.Method, Status: resp.StatusCode, Header: resp.Header, Body: body.Bytes(),
		})
		if fault != nil && fault.Kind == storefault.Foreign {
			return nil, notTheStore(fault)
		}

		if doc.Code == "" {
			doc.Code = http.StatusText(resp.StatusCode)
		}
		return nil, &StoreError{resp.StatusCode, doc.Code, doc.Message, fault}
	})
}

// notTheStore returns the error for an answer that is not the store's. What
// s3api tells clients about it is of no use to a command.
func notTheStore(err error) error {
	if fault := storefault.Of(err); fault != nil {
		return fmt.Errorf("%w %w", stored.ErrStore, fault)
	}
	return err
}

// repeated repeats a request that only reads, unless the store refused it,
// or somebody has to change a setting first.
func repeated(send Sender) Sender {
	return func(r *http.Request) (*http.Response, error) {
		for i := 0; ; i++ {
			resp, err := send(r)
			if err == nil || i+1 == sendTries || r.Context().Err() != nil ||
				r.Method != http.MethodGet && r.Method != http.MethodHead {
				return resp, err
			}

			var refusal *StoreError
			if errors.As(err, &refusal) && refusal.HTTPStatus < 500 &&
				refusal.HTTPStatus != http.StatusTooManyRequests {
				return resp, err
			}
			if fault := storefault.Of(err); fault != nil && !fault.Temporary {
				return resp, err
			}

			select {
			case <-r.Context().Done():
				return nil, err
			case <-time.After(sendPause << i):
			}
		}
	}
}

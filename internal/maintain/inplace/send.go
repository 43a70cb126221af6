package inplace

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Sender sends a request to the store, as stored.Reader.Send.
type Sender = func(*http.Request) (*http.Response, error)

// StoreError is an error answer of the store.
type StoreError struct {
	HTTPStatus int
	Code       string // S3's, or the text of the status where the answer has none
	Message    string
}

func (e *StoreError) Error() string {
	return fmt.Sprintf("the store answered %d %s %s", e.HTTPStatus, e.Code, e.Message)
}

// Status is that of the answer; package stored looks at it.
func (e *StoreError) Status() int { return e.HTTPStatus }

// How often a request without a body is sent to a store that does not answer
// it, and the first pause in between. It doubles each time.
const (
	sendTries = 5
	sendPause = 200 * time.Millisecond
)

// maxRefusal bounds what is read of an error answer, in bytes.
const maxRefusal = 64 << 10

// NewSender returns a Sender that sends through a transport. An answer that is
// not a success is a *StoreError.
//
// checkAnswer and checkRefusal return an error for an answer that is not S3's:
// something between here and the store has sent it. Requests that only read
// are sent again when the store has no time for them: among millions there
// always is one.
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
				return nil, err
			}
			return resp, nil
		}

		defer resp.Body.Close()
		var doc struct{ Code, Message string }
		var body bytes.Buffer
		_, _ = body.ReadFrom(io.LimitReader(resp.Body, maxRefusal))
		_ = xml.Unmarshal(body.Bytes(), &doc) // a HEAD has none

		if err := checkRefusal(r, resp.StatusCode, doc.Code, body.Bytes()); err != nil {
			return nil, err
		}
		if doc.Code == "" {
			doc.Code = http.StatusText(resp.StatusCode)
		}
		return nil, &StoreError{resp.StatusCode, doc.Code, doc.Message}
	})
}

// repeated sends a request again that only reads, unless the store refused it.
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

			select {
			case <-r.Context().Done():
				return nil, err
			case <-time.After(sendPause << i):
			}
		}
	}
}

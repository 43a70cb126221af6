package tracing

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// RefusalError is an answer of the receiver by which it does not accept spans, or
// which is not that of a receiver.
type RefusalError struct {
	Status      int
	ContentType string
	Body        string // the beginning
}

func (r *RefusalError) Error() string {
	text := fmt.Sprintf("the receiver answered %d", r.Status)
	if r.isPage() {
		return text + " with a web page"
	}
	if r.Body != "" && strings.HasPrefix(r.ContentType, "text/") {
		text += fmt.Sprintf(": %.200q", r.Body)
	}
	return text
}

func (r *RefusalError) isPage() bool {
	kind, _, _ := mime.ParseMediaType(r.ContentType) // "" if it is malformed
	return kind == "text/html"
}

// Try sends a request without spans to the receiver, as those with spans are
// sent, and returns an error if they would not be accepted. An answer that
// refuses them is a *RefusalError.
//
// An export without spans is valid, and receivers discard it
// (https://opentelemetry.io/docs/specs/otlp/#empty-telemetry-envelopes).
// As a message of protobuf, it has no bytes.
func (t *Tracer) Try(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, http.NoBody)
	if err != nil {
		return fmt.Errorf("tracing: %w", err)
	}
	r.Header.Set("Content-Type", "application/x-protobuf")

	resp, err := t.receiver.client().Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()

	var start bytes.Buffer
	_, _ = start.ReadFrom(io.LimitReader(resp.Body, maxError)) // only for the error
	refusal := &RefusalError{
		Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type"),
		Body: strings.TrimSpace(clean(start.String(), maxError)),
	}
	if resp.StatusCode/100 == 2 && !refusal.isPage() {
		return nil // some receivers answer 204
	}
	return refusal
}

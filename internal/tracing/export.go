package tracing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// exporter sends batches of spans, one at a time. It counts the spans that
// are lost and reports an outage once, so it returns no errors: the SDK would
// log each of them to standard error.
type exporter struct {
	next     sdktrace.SpanExporter
	receiver *receiver
	identity *resource.Resource
	report   func(err error, lost uint64) // may be nil

	waiting           atomic.Int64 // spans that have ended and were neither sent nor dropped
	exported, dropped atomic.Uint64

	failing bool   // since the last batch
	before  uint64 // value of dropped when the outage began
}

// ExportSpans implements sdktrace.SpanExporter.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	own := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		own[i] = spanOf{s, e.identity}
	}

	e.receiver.rejected.Store(0)
	err := e.next.ExportSpans(ctx, own)
	lost := int64(len(spans))
	if err == nil {
		lost = min(lost, e.receiver.rejected.Load())
	}

	if e.waiting.Add(-int64(len(spans))) < 0 {
		return nil // abandon has counted them
	}
	e.exported.Add(uint64(len(spans)) - uint64(lost))
	e.note(err, uint64(lost))
	return nil
}

// note counts the spans that were lost and reports the beginning and the end
// of an outage.
func (e *exporter) note(err error, lost uint64) {
	if err == nil && lost > 0 {
		err = fmt.Errorf("the receiver rejected %d spans: %.200q", lost, *e.receiver.reason.Load())
	}

	was, before := e.failing, e.before
	if e.failing = err != nil; e.failing && !was {
		e.before = e.dropped.Load()
	}
	total := e.dropped.Add(lost)

	if e.report == nil || e.failing == was {
		return
	}
	if err == nil {
		e.report(nil, total-before)
		return
	}
	e.report(shortError(err), lost)
}

// maxError limits the length of an error in bytes. It may contain the answer
// of the receiver.
const maxError = 400

func shortError(err error) error {
	if text := err.Error(); len(text) > maxError {
		return errors.New(clean(text, maxError))
	}
	return err
}

// Shutdown implements sdktrace.SpanExporter.
func (e *exporter) Shutdown(ctx context.Context) error { return e.next.Shutdown(ctx) }

// abandon ends the request that is being sent, and counts the spans that wait
// as lost.
func (e *exporter) abandon() {
	_ = e.next.Shutdown(context.Background()) // closes a channel; does nothing the second time
	if left := e.waiting.Swap(0); left > 0 {
		e.dropped.Add(uint64(left))
	}
}

// spanOf is a span with our resource. The SDK adds attributes from the
// environment to the one that it is given.
type spanOf struct {
	sdktrace.ReadOnlySpan

	identity *resource.Resource
}

// Resource implements sdktrace.ReadOnlySpan.
func (s spanOf) Resource() *resource.Resource { return s.identity }

// processor counts the spans that are dropped because too many wait. The
// SDK's queue has room for all others.
type processor struct {
	sdktrace.SpanProcessor

	exporter *exporter
}

func newProcessor(e *exporter) processor {
	return processor{sdktrace.NewBatchSpanProcessor(
		e,
		sdktrace.WithMaxQueueSize(queueSize),
		sdktrace.WithMaxExportBatchSize(batchSize),
		sdktrace.WithBatchTimeout(batchInterval),
		sdktrace.WithExportTimeout(exportTimeout),
	), e}
}

// OnEnd implements sdktrace.SpanProcessor.
func (p processor) OnEnd(s sdktrace.ReadOnlySpan) {
	if p.exporter.waiting.Add(1) > queueSize {
		p.exporter.waiting.Add(-1)
		p.exporter.dropped.Add(1)
		return
	}
	p.SpanProcessor.OnEnd(s)
}

// maxAnswer limits what is read of the receiver's answer, in bytes.
const maxAnswer = 64 << 10

// takeRejected notes how many spans a successful answer rejects
// (https://opentelemetry.io/docs/specs/otlp/#partial-success-1), and takes
// that out of the answer. The client returns it as an error without the
// number.
func (r *receiver) takeRejected(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/x-protobuf" {
		return nil
	}

	var body bytes.Buffer
	_, err := body.ReadFrom(io.LimitReader(resp.Body, maxAnswer))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	resp.Body = http.NoBody

	var answer coltracepb.ExportTraceServiceResponse
	if err := proto.Unmarshal(body.Bytes(), &answer); err != nil {
		return fmt.Errorf("the receiver's answer is not OTLP: %w", err)
	}
	partial := answer.GetPartialSuccess()
	reason := partial.GetErrorMessage()
	r.reason.Store(&reason)
	r.rejected.Store(max(0, partial.GetRejectedSpans()))
	return nil
}

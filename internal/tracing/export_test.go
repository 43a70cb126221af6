package tracing

import "context"

// Flush sends the spans that wait.
func (t *Tracer) Flush(ctx context.Context) error { return t.provider.ForceFlush(ctx) }

// QueueSize is the number of spans that can wait.
const QueueSize = queueSize

package storecheck

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// neverAnETag is the ETag of no object.
const neverAnETag = `"00000000000000000000000000000000"`

// findPutConditions tests If-Match and If-None-Match of PutObject.
func (p *Probe) findPutConditions(ctx context.Context, set *capability.Set) error {
	etag, err := p.etag(ctx, p.name)
	if err != nil {
		return err
	}
	put := func(name, value string) request { return p.putting(p.name, http.Header{name: {value}}, text) }
	set[capability.PutIfMatch], err = p.honors(ctx, put("If-Match", etag), put("If-Match", neverAnETag))
	if err != nil {
		return fmt.Errorf("If-Match of PutObject: %w", err)
	}

	if etag, err = p.etag(ctx, p.name); err != nil {
		return err
	}
	bare := func(etag string) string { return strings.Trim(etag, `"`) }
	set[capability.PutIfMatchBare], err = p.honors(ctx, put("If-Match", bare(etag)), put("If-Match", bare(neverAnETag)))
	if err != nil {
		return fmt.Errorf("If-Match of PutObject: %w", err)
	}

	fresh := p.putting(p.name+"-new", http.Header{"If-None-Match": {"*"}}, text)
	set[capability.PutIfNoneMatch], err = p.honors(ctx, fresh, put("If-None-Match", "*"))
	if err != nil {
		return fmt.Errorf("If-None-Match of PutObject: %w", err)
	}
	return nil
}

// findCopyConditions tests the conditions of CopyObject on the source and on
// the object that is overwritten.
func (p *Probe) findCopyConditions(ctx context.Context, set *capability.Set) error {
	etag, err := p.etag(ctx, p.name)
	if err != nil {
		return err
	}
	target := p.name + "-copy"
	copying := func(name, value string) request {
		return p.putting(target, http.Header{
			"X-Amz-Copy-Source": {sigv4.EscapePath(p.path(p.name))},
			name:                {value},
		}, nil)
	}

	const onSource = "X-Amz-Copy-Source-If-Match"
	set[capability.CopySourceIfMatch], err = p.honors(ctx, copying(onSource, etag), copying(onSource, neverAnETag))
	if err != nil {
		return fmt.Errorf("the source condition of CopyObject: %w", err)
	}

	if etag, err = p.etag(ctx, target); err != nil {
		return err
	}
	set[capability.CopyIfMatch], err = p.honors(ctx, copying("If-Match", etag), copying("If-Match", neverAnETag))
	if err != nil {
		return fmt.Errorf("If-Match of CopyObject: %w", err)
	}
	return nil
}

// findDeleteCondition tests If-Match of DeleteObject.
func (p *Probe) findDeleteCondition(ctx context.Context, set *capability.Set) error {
	key := p.name + "-delete"
	put, err := p.putText(ctx, key, nil)
	if err != nil {
		return err
	}
	deleting := func(etag string) request {
		return request{method: http.MethodDelete, path: p.path(key), header: http.Header{"If-Match": {etag}}}
	}

	refused, err := p.refuses(ctx, deleting(neverAnETag))
	if err == nil && refused {
		refused, err = p.accepts(ctx, deleting(put.header.Get("Etag")))
	}
	if err != nil {
		return fmt.Errorf("If-Match of DeleteObject: %w", err)
	}
	set[capability.DeleteIfMatch] = capability.AnswerOf(refused)
	return nil
}

// honors reports whether the store accepts a request whose condition is met,
// and then refuses one whose condition is not. Some stores refuse both.
func (p *Probe) honors(ctx context.Context, met, unmet request) (capability.Answer, error) {
	accepted, err := p.accepts(ctx, met)
	if err != nil {
		return capability.Unknown, err
	}
	refused, err := p.refuses(ctx, unmet)
	if err != nil {
		return capability.Unknown, err
	}
	return capability.AnswerOf(accepted && refused), nil
}

// accepts reports whether the store does not refuse a request because of its
// condition.
func (p *Probe) accepts(ctx context.Context, q request) (bool, error) {
	got, err := p.do(ctx, q)
	if err != nil {
		return false, err
	}
	if got.status == http.StatusPreconditionFailed || ignores(got) {
		return false, nil
	}
	return got.refuse == nil, got.refuse
}

// refuses reports whether the store refuses a request because of its
// condition.
func (p *Probe) refuses(ctx context.Context, q request) (bool, error) {
	got, err := p.do(ctx, q)
	if err != nil {
		return false, err
	}
	return refused(got)
}

func refused(got reply) (bool, error) {
	switch {
	case got.status == http.StatusPreconditionFailed:
		return true, nil
	case got.refuse == nil, ignores(got):
		return false, nil
	default:
		return false, got.refuse
	}
}

// ignores reports whether a store does not know a condition, and says so.
func ignores(got reply) bool {
	return got.status == http.StatusNotImplemented ||
		got.status == http.StatusBadRequest ||
		got.status == http.StatusMethodNotAllowed
}

// etag returns the ETag of an object.
func (p *Probe) etag(ctx context.Context, key string) (string, error) {
	head, err := p.want(ctx, http.StatusOK, request{method: http.MethodHead, path: p.path(key)})
	return head.header.Get("Etag"), err
}

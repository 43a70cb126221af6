package rewrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// maxCopy is the size limit of one CopyObject or PutObject, in bytes.
const maxCopy = 5 << 30

// ErrLost means that the store has put an envelope on an object to which it
// does not belong.
var ErrLost = errors.New("THE OBJECT CAN NO LONGER BE READ")

// moveSingle gives a single-PUT object an envelope under the new key, for
// the name that it has now.
func (m *Mover) moveSingle(ctx context.Context, f *found) error {
	obj, seen := f.obj, f.seen
	if seen.Stored > maxCopy {
		return fmt.Errorf(
			"its %d stored bytes are more than one request can copy (5 GiB): download it and use a multipart upload",
			seen.Stored,
		)
	}

	old, err := m.open(ctx, f.was, obj, seen.Envelope.KeyID, seen.Envelope.WrappedDEK)
	if err != nil {
		return err
	}
	defer old.Release()

	if err := seen.Envelope.Verify(old.DEK(), f.was); err != nil {
		return err
	}
	fresh, err := m.rewrapped(ctx, obj, seen.Envelope, old)
	if err != nil {
		return err
	}
	header, err := m.sealMetadata(f, fresh, old)
	if err != nil {
		return err
	}

	metadata, err := fresh.Metadata()
	if err != nil {
		return err
	}

	stored.SetEnvelope(header, metadata)

	switch {
	case seen.Stored == 0:
		err = m.putEmpty(ctx, obj, seen, header)
	case m.cfg.Method == Copy:
		err = m.copy(ctx, obj, seen, header)
	default:
		err = m.put(ctx, obj, seen, header, old)
	}

	if err != nil {
		return err
	}
	return m.confirm(ctx, obj, fresh, seen.Stored == 0)
}

// rewrapped returns the envelope under the new key, after the KMS has
// unwrapped its data key.
func (m *Mover) rewrapped(
	ctx context.Context,
	obj crypt.Object,
	have *crypt.Envelope,
	old *keyring.Lease,
) (*crypt.Envelope, error) {
	wrapped, err := crypt.ParseWrappedKey(have.WrappedDEK)
	if err != nil {
		return nil, err
	}

	sealed, err := m.cfg.Keys.Rewrap(
		ctx,
		old,
		obj,
		m.cfg.Client,
		keyring.Choice{KeyID: m.cfg.To, Context: wrapped.Context, Trust: m.cfg.Bind},
	)
	if err != nil {
		return nil, err
	}
	defer sealed.Release()

	proof, err := m.cfg.Prove(ctx, obj, sealed)
	if err != nil {
		return nil, err
	}
	proof.Release()
	fresh := *have
	fresh.KeyID, fresh.WrappedDEK = sealed.KeyID, sealed.Wrapped
	return &fresh, nil
}

// sealMetadata sets the version of a new envelope, seals the metadata if it is
// not sealed yet and has to be, and signs the envelope. It returns the other
// headers of the object.
func (m *Mover) sealMetadata(f *found, fresh *crypt.Envelope, old *keyring.Lease) (http.Header, error) {
	header, err := stored.Carry(f.seen.Header, nil)
	if err != nil {
		return nil, err
	}

	format := m.format(f)
	fresh.Version = format.Version
	if format.SealMetadata && fresh.Meta == nil {
		if fresh.Meta, err = stored.SealMetadata(header, old.DEK(), m.cfg.Random); err != nil {
			return nil, err
		}
	}
	return header, fresh.Sign(old.DEK(), f.obj)
}

// copy makes the store copy the object onto itself. The source is the
// current version, without a version id, so the condition applies to the
// current object.
func (m *Mover) copy(ctx context.Context, obj crypt.Object, seen *stored.Seen, header http.Header) error {
	header.Set("X-Amz-Copy-Source", sigv4.EscapePath("/"+obj.Bucket+"/"+obj.Key))
	header.Set("X-Amz-Copy-Source-If-Match", seen.ETag)
	header.Set("X-Amz-Metadata-Directive", "REPLACE")
	if n := seen.Header.Get(stored.TagCount); n != "" && n != "0" && stored.IsRGW(seen.Header) {
		return fmt.Errorf("the store would drop the object's %s tags from a copy: use --method put", n)
	}
	header.Set("X-Amz-Tagging-Directive", "COPY")
	if m.cfg.Abilities.CopyIfMatch {
		header.Set("If-Match", seen.ETag)
	}
	body, err := m.store.Ask(ctx, http.MethodPut, obj, "", header, nil)
	if err != nil {
		return err
	}
	_, err = inplace.ETagOf(body)
	return err
}

// put sends the stored body back to the store, with the new envelope. The
// body is verified before it is sent, so a damaged body cannot replace a
// good one.
func (m *Mover) put(
	ctx context.Context,
	obj crypt.Object,
	seen *stored.Seen,
	header http.Header,
	dek *keyring.Lease,
) error {
	if err := m.store.CarryTags(ctx, obj, header); err != nil {
		return err
	}
	resp, err := m.store.Do(inplace.NewRequest(ctx, http.MethodGet, obj, "", http.Header{"If-Match": {seen.ETag}}, nil))
	if err != nil {
		return err
	}
	defer resp.Body.Close()

	if resp.Header.Get("Etag") != seen.ETag || resp.ContentLength != seen.Stored {
		return inplace.ErrChanged
	}
	body, err := stored.CheckBody(ctx, resp.Body, seen.Envelope.Size, seen.Envelope.Header, dek)
	if err != nil {
		return err
	}
	defer body.Close()

	if m.cfg.Abilities.PutIfMatch {
		header.Set("If-Match", m.cfg.Abilities.IfMatch(seen.ETag))
	} else if err := m.store.Unchanged(ctx, obj, seen.ETag); err != nil {
		return err
	}
	_, err = m.store.Ask(ctx, http.MethodPut, obj, "", header, &inplace.Payload{Body: body, Length: seen.Stored})

	if body.Err != nil {
		// The error of the request to the store is only its result.
		return body.Err
	}
	return err
}

// putEmpty rewrites an object that has no body.
func (m *Mover) putEmpty(ctx context.Context, obj crypt.Object, seen *stored.Seen, header http.Header) error {
	if err := m.store.CarryTags(ctx, obj, header); err != nil {
		return err
	}
	if m.cfg.Abilities.PutIfMatch {
		header.Set("If-Match", m.cfg.Abilities.IfMatch(seen.ETag))
	} else if err := m.store.Unchanged(ctx, obj, seen.ETag); err != nil {
		return err
	}
	_, err := m.store.Ask(ctx, http.MethodPut, obj, "", header, nil)
	return err
}

// confirm checks the stored object. The envelope has the header of the body,
// which is random for each body. So it shows that the envelope and the body
// belong together.
func (m *Mover) confirm( //nolint:revive // empty describes the object
	ctx context.Context,
	obj crypt.Object,
	fresh *crypt.Envelope,
	empty bool,
) error {
	look := func() (*stored.Seen, error) { return m.check.Peek(ctx, request(obj), crypt.HeaderSize) }
	if empty {
		look = func() (*stored.Seen, error) { return m.check.Look(ctx, request(obj)) }
	}

	seen, err := look()
	switch stored.StatusOf(err) {
	case http.StatusNotFound:
		return nil // deleted in the meantime
	case http.StatusRequestedRangeNotSatisfiable:
		return inplace.ErrChanged // the new object is empty
	}
	if err != nil {
		return fmt.Errorf("it was moved, but could not be checked afterwards: %w", err)
	}

	have := seen.Envelope
	if have == nil || have.KeyID != fresh.KeyID || !bytes.Equal(have.WrappedDEK, fresh.WrappedDEK) {
		// Overwritten in the meantime: the next attempt handles the new
		// object.
		return inplace.ErrChanged
	}

	if !empty && !bytes.Equal(seen.First, fresh.Header[:]) || empty && seen.Stored > 0 {
		return fmt.Errorf(
			"%w: it was overwritten while the store copied it, "+
				"and the store put the old object's envelope on the new body",
			ErrLost,
		)
	}

	lease, err := m.cfg.Check(ctx, obj, have.KeyID, have.WrappedDEK)
	if err != nil {
		return fmt.Errorf("it was moved, but its key could not be opened afterwards: %w", err)
	}
	defer lease.Release()

	if err := have.Verify(lease.DEK(), obj); err != nil {
		return fmt.Errorf("it was moved, but fails verification afterwards: %w", err)
	}
	return nil
}

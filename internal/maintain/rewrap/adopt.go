package rewrap

import (
	"context"
	"errors"
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// ErrOtherName means that an object is bound neither to its name nor to its
// old name.
var ErrOtherName = errors.New("it was altered, or belongs to another name")

// findName finds out to which name an object is bound. It reports whether
// clients can read the object as it is, so that nothing needs to be done.
//
// The old name is tried first, because most objects of a first run have it.
// Only the operator's pair of names counts: the store cannot make an object
// appear under any other name.
func (m *Mover) findName(ctx context.Context, f *found) (current bool, err error) {
	old, err := m.cfg.OldName(f.obj)
	if err != nil {
		return false, err
	}

	f.was = old
	asOld := m.bound(ctx, f)
	if asOld == nil && old != f.obj {
		return false, nil
	}
	if asOld != nil && !isVerdict(asOld) {
		return false, asOld
	}

	f.was = f.obj
	asNew := m.bound(ctx, f)
	if asNew == nil {
		return f.hasPartCount(), nil
	}
	if !isVerdict(asNew) {
		return false, asNew
	}

	err = fmt.Errorf("as s3://%s/%s: %w; as s3://%s/%s: %w", old.Bucket, old.Key, asOld, f.obj.Bucket, f.obj.Key, asNew)
	if isOtherName(asOld) && isOtherName(asNew) {
		err = fmt.Errorf("%w: %w", ErrOtherName, err)
	}
	return false, err
}

// bound returns nil if the object is bound to the name f.was: its envelope,
// or the header of each part. The body is not read. It counts the parts.
func (m *Mover) bound(ctx context.Context, f *found) error {
	if e := f.seen.Envelope; e != nil {
		lease, err := m.open(ctx, f.was, f.obj, e.KeyID, e.WrappedDEK)
		if err != nil {
			return err
		}
		defer lease.Release()
		f.size = e.Size
		return e.Verify(lease.DEK(), f.was)
	}

	f.parts, f.size = 0, 0
	for part, err := range f.reader.PartHeaders(ctx, f.request(), f.seen) {
		if err != nil {
			return err
		}
		if err := m.boundPart(ctx, f, part); err != nil {
			return fmt.Errorf("part %d: %w", part.Number, err)
		}
		f.parts++
		f.size += part.Size
	}
	return nil
}

func (m *Mover) boundPart(ctx context.Context, f *found, part *crypt.Part) error {
	lease, err := m.open(ctx, f.was, f.obj, part.KeyID, part.WrappedDEK)
	if err != nil {
		return err
	}
	defer lease.Release()

	if part.HasRecord() && part.Record == nil {
		return nil // the MAC covers the record, which is verified when the object is read
	}
	return part.Verify(lease.DEK(), f.was)
}

// hasPartCount reports whether the number of parts in the ETag is that of the
// object. Readers compute the size from it. A tool that has copied the object
// may have cut it into other parts.
func (f *found) hasPartCount() bool {
	return f.seen.Envelope != nil || f.seen.Parts < 0 || f.seen.Parts == f.parts
}

// isVerdict reports whether an error is about the object or its key under a
// name. Other errors, such as those of the store, say nothing about the name.
func isVerdict(err error) bool {
	return isOtherName(err) || kms.IsRevoked(err) || errors.Is(err, keyring.ErrNotRead) ||
		errors.Is(err, keyring.ErrUnknownKey) || errors.Is(err, keyring.ErrKeyName)
}

// isOtherName reports whether an object has failed verification under a
// name. A KMS refuses a data key that was wrapped for another name.
func isOtherName(err error) bool {
	var refusal *kms.Error
	return errors.As(err, &refusal) && refusal.Kind == kms.InvalidCiphertext ||
		errors.Is(err, crypt.ErrAuth) || errors.Is(err, crypt.ErrEnvelope) || errors.Is(err, stored.ErrIntegrity)
}

package rewrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// moveParts reads a multipart object and uploads it again. The parts keep
// their numbers and lengths, and an appended final part is appended again.
// So part numbers and the sizes in listings do not change. It returns the
// parts.
func (m *Mover) moveParts(ctx context.Context, f *found) (crypt.Layout, error) {
	obj := f.obj
	src, err := survey(ctx, f)
	if err != nil {
		return nil, err
	}

	context, err := contextOf(ctx, f)
	if err != nil {
		return nil, err
	}

	key, err := m.cfg.NewKey(ctx, obj, keyring.Choice{KeyID: m.cfg.To, Context: context})
	if err != nil {
		return nil, err
	}
	defer key.Release()

	have, err := revealed(ctx, f)
	if err != nil {
		return nil, err
	}
	header, err := stored.Carry(have, nil)
	if err != nil {
		return nil, err
	}
	if err := m.store.CarryTags(ctx, obj, header); err != nil {
		return nil, err
	}

	up, err := m.store.CreateSealed(ctx, obj, header, key, m.format(f), m.cfg.Random)
	if err != nil {
		return nil, err
	}
	if err := m.reupload(ctx, src, key, up); err != nil {
		up.Abort(ctx)
		return nil, err
	}

	return src.layout, m.confirmParts(ctx, obj, src, up)
}

// contextOf returns what the client has added to the encryption context of
// an upload. All parts have the same, so it reads the first.
func contextOf(ctx context.Context, f *found) (map[string]string, error) {
	for part, err := range f.reader.PartHeaders(ctx, f.request(), f.seen) {
		if err != nil {
			return nil, err
		}
		wrapped, err := crypt.ParseWrappedKey(part.WrappedDEK)
		return wrapped.Context, err
	}
	return nil, inplace.ErrChanged
}

// revealed returns the headers of an object, with its metadata if that is
// sealed.
func revealed(ctx context.Context, f *found) (http.Header, error) {
	sealed := f.seen.Metadata()
	if sealed == nil {
		return f.seen.Header, nil
	}
	lease, err := f.reader.Open(ctx, f.was, sealed.KeyID, sealed.WrappedDEK)
	if err != nil {
		return nil, err
	}
	defer lease.Release()
	return sealed.Reveal(f.seen.Header, lease.DEK(), f.was)
}

// source is a multipart object that is to be uploaded again.
type source struct {
	*found
	layout   crypt.Layout
	appended bool // the object has an appended final part, which is not in the layout
	checksum stored.Checksum
}

// survey reads the parts of an object. Each part is verified by its header
// or by the record.
func survey(ctx context.Context, f *found) (*source, error) {
	s := &source{found: f}
	head, err := f.reader.Head(ctx, f.request())
	if err != nil {
		return nil, err
	}
	if s.layout, err = f.reader.Layout(ctx, f.request(), head); err != nil {
		return nil, err
	}

	if len(s.layout) == 0 {
		return nil, inplace.ErrChanged
	}
	s.appended = f.seen.Stored != s.layout.Size()+int64(s.layout.Parts())*crypt.PartOverhead
	s.checksum, err = head.Checksum(ctx)
	return s, err
}

// reupload sends all parts and completes the upload.
func (m *Mover) reupload(
	ctx context.Context,
	src *source,
	key *inplace.Key,
	up *inplace.Upload,
) error {
	o, err := src.reader.Get(ctx, src.request())
	if err != nil {
		return err
	}
	defer o.Close()
	text := o.Reader(ctx)

	for i := range src.layout.Parts() {
		at, _ := src.layout.At(i)
		part := crypt.Part{Number: at.Number, Size: at.Size, Final: crypt.IsFinal(at.Number, at.Size)}
		if err := up.Seal(ctx, part, io.LimitReader(text, at.Size), key, m.cfg.Random, nil); err != nil {
			return err
		}
	}

	// The end of the object is verified after its last byte.
	if n, err := io.ReadFull(text, make([]byte, 1)); n > 0 || err != io.EOF { // Reader returns io.EOF unwrapped
		return errors.Join(fmt.Errorf("%w: it does not end after its last part", stored.ErrIntegrity), err)
	}

	if src.appended {
		if err := up.End(ctx, src.layout, src.checksum, key, m.cfg.Random); err != nil {
			return err
		}
	}

	if !m.cfg.Abilities.CompleteIfMatch {
		if err := m.store.Unchanged(ctx, src.obj, src.seen.ETag); err != nil {
			return err
		}
		return up.Complete(ctx, "")
	}
	return up.Complete(ctx, src.seen.ETag)
}

// confirmParts reads the new object through the new key: the record, or else
// the header of each part.
func (m *Mover) confirmParts(ctx context.Context, obj crypt.Object, src *source, up *inplace.Upload) error {
	q := request(obj)
	seen, err := m.check.Look(ctx, q)
	if stored.StatusOf(err) == http.StatusNotFound {
		return nil // deleted in the meantime
	}
	if err != nil {
		return fmt.Errorf("it was moved, but could not be checked afterwards: %w", err)
	}

	if seen.ETag != up.ETag {
		// Overwritten in the meantime: the next attempt handles the new
		// object.
		return inplace.ErrChanged
	}

	var layout crypt.Layout
	head, err := m.check.Head(ctx, q)
	if err == nil {
		layout, err = m.check.Layout(ctx, q, head)
	}

	switch {
	case err != nil:
		return fmt.Errorf("it was moved, but fails verification afterwards: %w", err)
	case !slices.Equal(layout, src.layout):
		return fmt.Errorf("%w: it was moved, but has other parts than before", stored.ErrIntegrity)
	}
	return nil
}

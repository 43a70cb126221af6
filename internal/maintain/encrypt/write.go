package encrypt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// put writes a single-PUT object.
func (e *Encrypter) put(ctx context.Context, w *written, before **written) error {
	if !e.cfg.Abilities.PutIfMatch && !e.cfg.Unconditional {
		return fmt.Errorf("PutObject: %w", ErrUnconditional)
	}
	key, err := e.cfg.NewKey(ctx, w.obj, keyring.Choice{})
	if err != nil {
		return err
	}
	defer key.Release()

	body, err := e.read(ctx, w.original, 0, w.size)
	if err != nil {
		return err
	}
	defer body.Close()

	text := &twin{
		src: &source{
			r:    body,
			sums: w.sums,
			end:  func() error { return e.atTheEnd(ctx, w, e.cfg.Abilities.PutIfMatch) },
		},
	}

	sealer, err := crypt.NewSealer(text, w.size, key.DEK(), e.cfg.Random)
	if err != nil {
		return err
	}
	defer func() { _ = sealer.Close() }() // it only returns a buffer
	w.header = sealer.Header()

	header, err := e.envelope(ctx, w, key)
	if err != nil {
		return err
	}

	checked, err := stored.CheckBody(ctx, sealer, w.size, w.header, key.Proof)
	if err != nil {
		return err
	}
	defer checked.Close()
	checked.Seen = text.seen

	if e.cfg.Abilities.PutIfMatch {
		header.Set("If-Match", e.cfg.Abilities.IfMatch(w.stored))
	}

	payload := &inplace.Payload{Body: checked, Length: crypt.StoredSize(w.size)}
	if crypt.IsMarker(w.obj, w.size) {
		if _, err := io.Copy(io.Discard, checked); err != nil { // verifies that it is empty
			return err
		}
		payload = nil
	}
	*before = w

	resp, err := e.store.Do(inplace.NewRequest(ctx, http.MethodPut, w.obj, "", header, payload))
	if err == nil {
		w.etag = resp.Header.Get("Etag")
		err = resp.Body.Close()
	}

	if checked.Err != nil {
		// The error of the request to the store is only its result.
		return checked.Err
	}
	return err
}

// envelope returns headers with a verified envelope and the object's
// metadata.
func (e *Encrypter) envelope(ctx context.Context, w *written, key *inplace.Key) (http.Header, error) {
	sum, err := crypt.SealChecksums(w.sums.digests(), key.DEK(), e.cfg.Random)
	if err != nil {
		return nil, err
	}

	header, err := e.carried(ctx, w)
	if err != nil {
		return nil, err
	}

	format := e.cfg.Keys.Format(w.obj, e.cfg.Client)
	envelope := crypt.Envelope{
		Version: format.Version, KeyID: key.KeyID, WrappedDEK: key.Wrapped, Header: w.header, Size: w.size, Sum: sum,
	}
	if format.SealMetadata {
		if envelope.Meta, err = stored.SealMetadata(header, key.DEK(), e.cfg.Random); err != nil {
			return nil, err
		}
	}
	if err := envelope.Sign(key.DEK(), w.obj); err != nil {
		return nil, err
	}

	metadata, err := envelope.Metadata()
	if err != nil {
		return nil, err
	}

	again, err := crypt.ParseEnvelope(metadata)
	if err != nil {
		return nil, err
	}
	if err := again.Verify(key.Proof.DEK(), w.obj); err != nil {
		return nil, err
	}

	stored.SetEnvelope(header, metadata)
	return header, nil
}

// carried returns the metadata and the tags of the original.
func (e *Encrypter) carried(ctx context.Context, w *written) (http.Header, error) {
	header, err := stored.Carry(w.have, nil)
	if err != nil {
		return nil, err
	}
	return header, e.store.CarryTags(ctx, w.obj, header)
}

// atTheEnd is called after all bytes were read, and before the last of them
// is sent.
func (e *Encrypter) atTheEnd( //nolint:revive // conditional describes the store
	ctx context.Context,
	w *written,
	conditional bool,
) error {
	if err := w.sums.check(); err != nil || conditional {
		return err
	}
	return e.store.Unchanged(ctx, w.obj, w.stored)
}

// upload writes a multipart object.
func (e *Encrypter) upload(ctx context.Context, w *written, before **written) error {
	if !e.cfg.Abilities.CompleteIfMatch && !e.cfg.Unconditional {
		return fmt.Errorf("CompleteMultipartUpload: %w", ErrUnconditional)
	}
	key, err := e.cfg.NewKey(ctx, w.obj, keyring.Choice{})
	if err != nil {
		return err
	}
	defer key.Release()

	header, err := e.carried(ctx, w)
	if err != nil {
		return err
	}
	format := e.cfg.Keys.Format(w.obj, e.cfg.Client)
	if w.up, err = e.store.CreateSealed(ctx, w.obj, header, key, format, e.cfg.Random); err != nil {
		return err
	}

	if err := e.sendParts(ctx, w, key); err != nil {
		w.up.Abort(ctx)
		return err
	}
	*before = w
	condition := w.stored

	if !e.cfg.Abilities.CompleteIfMatch {
		condition = ""
	}
	if err := w.up.Complete(ctx, condition); err != nil {
		w.up.Abort(ctx)
		return err
	}

	w.etag = w.up.ETag
	return nil
}

func (e *Encrypter) sendParts(ctx context.Context, w *written, key *inplace.Key) error {
	n := w.layout.Parts()
	for i := range n {
		at, _ := w.layout.At(i)
		before := w.sums
		if err := inplace.Retry(ctx, func() error {
			w.sums = before.clone()
			return e.sendPart(ctx, w, key, at)
		}); err != nil {
			return err
		}
	}

	if err := e.atTheEnd(ctx, w, e.cfg.Abilities.CompleteIfMatch); err != nil {
		return err
	}

	first, _ := w.layout.At(0)
	last, _ := w.layout.At(n - 1)
	if crypt.IsFinal(last.Number, last.Size) || e.cfg.OpenEnd && last.Size != first.Size {
		// The end is recognizable, or the store would refuse another part
		// after this one.
		return nil
	}
	return w.up.End(ctx, w.layout, w.checksum(), key, e.cfg.Random)
}

func (e *Encrypter) sendPart(ctx context.Context, w *written, key *inplace.Key, at crypt.Place) error {
	body, err := e.read(ctx, w.original, at.Offset, at.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	text := &twin{src: &source{r: body, sums: w.sums}}
	part := crypt.Part{Number: at.Number, Size: at.Size, Final: crypt.IsFinal(at.Number, at.Size)}
	return w.up.Seal(ctx, part, text, key, e.cfg.Random, text.seen)
}

// readBack reads the stored object with the key as the KMS unwraps it, and
// compares it with the original.
func (e *Encrypter) readBack(ctx context.Context, w *written, etag string) error {
	o, err := e.reader.Get(ctx, onlyIf(w.obj, etag))
	switch stored.StatusOf(err) {
	case http.StatusNotFound:
		return nil // deleted in the meantime
	case http.StatusPreconditionFailed:
		// Overwritten in the meantime: the next attempt handles the new
		// object.
		return inplace.ErrChanged
	}

	if err == nil {
		sum := sha256.New()
		_, err = io.Copy(sum, o.Reader(ctx))
		o.Close()
		if err == nil && !bytes.Equal(sum.Sum(nil), w.sums.whole.Sum(nil)) {
			err = errors.New("the stored object has other bytes")
		}

		if err == nil {
			return nil
		}
	}

	if damaged(err) {
		return fmt.Errorf("%w: after encryption, reading it back: %w", ErrLost, err)
	}
	return fmt.Errorf("it was encrypted, but could not be read back: %w", err)
}

// damaged reports whether an error means that the bytes have changed. An
// unreachable store or KMS does not mean that.
func damaged(err error) bool {
	if errors.Is(err, inplace.ErrChanged) || errors.Is(err, inplace.ErrUnanswered) ||
		errors.Is(err, stored.ErrOverwritten) ||
		stored.StatusOf(err) != 0 {
		return false
	}
	return !keyFailed(err) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// keyFailed reports whether the key could not be used, through no fault of
// the object.
func keyFailed(err error) bool {
	var failure *kms.Error
	return errors.As(err, &failure) && failure.Kind != kms.InvalidCiphertext
}

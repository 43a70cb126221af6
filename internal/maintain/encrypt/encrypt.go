// Package encrypt encrypts plaintext objects of the store in place.
//
// On most buckets it overwrites the only copy of an object. Therefore:
//
//   - Each byte is decrypted again before it is sent, with the data key as the
//     KMS has unwrapped it, and compared with the plaintext that was read.
//   - The plaintext is compared with the checksums that the store reports. The
//     last bytes are sent only after all of it was verified, and a store does
//     not keep an incomplete body.
//   - The write has a condition on the ETag, so a concurrent write of a client
//     is kept.
//   - Afterwards the object is read back.
//
// Files:
//
//	encrypt.go  one object, and what to do with it
//	write.go    writing it, and reading it back
//	source.go   reading the plaintext
//	layout.go   choosing the parts of a multipart upload
//
// There is no example: it needs a store. docs/migration.md shows the
// command.
package encrypt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Config configures an Encrypter.
type Config struct {
	inplace.Config
	// Unconditional writes even if the store does not honor a condition. A
	// concurrent write of a client is then lost.
	Unconditional bool
	// Listed, if not nil, returns an error for an object that must not be
	// encrypted. The write is conditional on the state of the object that
	// Listed has seen.
	Listed func(obj crypt.Object, seen *stored.Seen) error
}

var (
	// ErrLost means that the stored object is no longer the one that was
	// there. After it, nothing more is encrypted.
	ErrLost = fmt.Errorf("THE STORED OBJECT DIFFERS FROM THE ORIGINAL; %w", walk.ErrStop)
	// ErrUnconditional means that the store would ignore the condition.
	ErrUnconditional = errors.New(
		"the store does not honor If-Match here, so a concurrent write of a client could be lost",
	)
	// ErrDenied means that the rules do not allow plaintext there. The
	// object may have been planted. After encryption, readers would take it
	// for genuine.
	ErrDenied = errors.New("it is plaintext where the rule denies that, so it may not be genuine: " +
		"if it is, set plaintext_objects: allow during the migration")
	// ErrSource means that the bytes from the store do not have the checksum
	// that the store reports.
	ErrSource = errors.New("the bytes from the store do not have the checksum that the store reports")
)

// Encrypter encrypts objects. It is safe for concurrent use.
type Encrypter struct {
	cfg    Config
	store  *inplace.Store
	reader *stored.Reader // uses Config.Check
	lost   atomic.Pointer[error]
}

// New returns an Encrypter.
func New(cfg Config) *Encrypter {
	store := cfg.Store()
	return &Encrypter{cfg: cfg, store: store, reader: cfg.Reader(store, cfg.Check)}
}

// Encrypt encrypts the object of a listing's entry, unless it is already
// encrypted.
func (e *Encrypter) Encrypt(ctx context.Context, bucket string, entry stored.Entry) walk.Result {
	obj := crypt.Object{Bucket: bucket, Key: entry.Key}
	var before *written
	return inplace.Insist(ctx, entry, e.cfg.Away, func(ctx context.Context) (walk.Result, error) {
		if lost := e.lost.Load(); lost != nil {
			return walk.Result{}, *lost
		}
		r, err := e.attempt(ctx, obj, &before)
		if err != nil && damaged(err) {
			err = inplace.Confirm(ctx, err)
		}
		if errors.Is(err, ErrLost) {
			err = fmt.Errorf("%s: %w", obj.Key, err)
			e.lost.CompareAndSwap(nil, &err)
		}
		return r, err
	})
}

// attempt encrypts an object, if necessary. Every assumption about the
// object is a condition of the write, so attempt can be repeated after any
// failure. before is what an earlier attempt tried to write.
func (e *Encrypter) attempt(ctx context.Context, obj crypt.Object, before **written) (walk.Result, error) {
	seen, err := e.reader.Look(
		ctx,
		stored.Request{Object: obj, Header: http.Header{"X-Amz-Checksum-Mode": {"ENABLED"}}},
	)
	if stored.StatusOf(err) == http.StatusNotFound {
		return walk.Result{Outcome: walk.Gone}, err
	}
	if err != nil {
		return walk.Result{}, err
	}

	r := walk.Result{Outcome: walk.Done, Size: seen.Stored, Parts: max(seen.Parts, 0)}
	if !seen.Plaintext {
		if w := *before; w != nil && w.isIn(ctx, e, seen) { // the answer to the write was lost
			r.Size, r.Parts = w.size, w.layout.Parts()
			return r, e.readBack(ctx, w, seen.ETag)
		}
		return walk.Result{Outcome: walk.Current}, nil
	}

	if !e.cfg.Keys.AllowPlaintext(obj, e.cfg.Client) {
		return r, ErrDenied
	}

	if e.cfg.Listed != nil {
		if err := e.cfg.Listed(obj, seen); err != nil {
			return r, err
		}
	}

	if _, err := e.cfg.Keys.KeyID(ctx, obj, e.cfg.Client, ""); err != nil || e.cfg.DryRun {
		return r, err
	}

	if e.cfg.Wait != nil {
		if err := e.cfg.Wait(ctx); err != nil {
			return r, err
		}
	}

	layout, err := e.layout(ctx, obj, seen)
	if err != nil {
		return r, err
	}
	r.Parts = layout.Parts()
	w := &written{original: newOriginal(obj, seen, e.cfg.Abilities.ETagIsMD5), layout: layout}

	if layout == nil {
		err = e.put(ctx, w, before)
	} else {
		err = e.upload(ctx, w, before)
	}

	if err != nil {
		return r, err
	}
	return r, e.readBack(ctx, w, w.etag)
}

// written is the encrypted object that replaces the original.
type written struct {
	*original
	layout crypt.Layout    // nil for a single-PUT object
	header crypt.Header    // header of the body, for a single-PUT object
	up     *inplace.Upload // for a multipart object
	etag   string          // ETag of the stored object; "" if the store has not returned it
}

// isIn reports whether the stored object is w. Headers and upload ids are
// unique to each write.
func (w *written) isIn(ctx context.Context, e *Encrypter, seen *stored.Seen) bool {
	if w.up == nil {
		return seen.Envelope != nil && bytes.Equal(seen.Envelope.Header[:], w.header[:])
	}
	if seen.Envelope != nil {
		return false
	}
	q := onlyIf(w.obj, seen.ETag)
	head, err := e.reader.Head(ctx, q)
	if err == nil {
		err = e.reader.Survey(ctx, q, head)
	}
	return err == nil && head.MadeBy(w.up.ID(), w.numbers())
}

// numbers returns the part numbers, without the appended final part.
func (w *written) numbers() []int {
	return w.up.Numbers()[:w.layout.Parts()]
}

// onlyIf returns a request that fails if the object no longer has this ETag,
// or is plaintext.
func onlyIf(obj crypt.Object, etag string) stored.Request {
	return stored.Request{
		Object:    obj,
		Header:    http.Header{"If-Match": {etag}},
		Plaintext: func(int64) error { return inplace.ErrChanged },
	}
}

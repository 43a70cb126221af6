// Package encrypt encrypts objects of the store that never were, in place.
//
// On most buckets what it writes takes the place of the only copy. So no byte
// of it leaves before it has been decrypted again, by the data key as the KMS
// has unwrapped it, and compared with what was read; what was read is compared
// with what the store has of its checksums; the last of it leaves only when
// all has. A body that the store does not get whole is not kept. It is written
// by a condition on the ETag, so that what a client stores meanwhile stays.
// Then it is read back.
//
//	encrypt.go  one object, and what is to be done with it
//	write.go    writing it, and reading it back
//	source.go   the plaintext on its way
//	layout.go   in which parts it is uploaded
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

// Config is what an Encrypter works with.
type Config struct {
	inplace.Config
	// Unconditional writes also what the store holds to no condition for. What
	// a client stores in that moment is lost.
	Unconditional bool
	// Listed, if not nil, refuses an object that is not to be encrypted. What
	// it was asked about is a condition of what is written.
	Listed func(obj crypt.Object, seen *stored.Seen) error
}

var (
	// ErrLost says that what is stored now is not what was there. Nothing more
	// is encrypted after it.
	ErrLost = fmt.Errorf("WHAT IS STORED NOW IS NOT WHAT WAS THERE; %w", walk.ErrStop)
	// ErrUnconditional says that the store would not hold to the condition.
	ErrUnconditional = errors.New(
		"the store does not hold to If-Match here, so that what a client writes in the same moment could be lost",
	)
	// ErrDenied says that the rules take no plaintext there. It may have been
	// planted, and encrypting it would have readers take it for genuine.
	ErrDenied = errors.New("it is plaintext where the rule denies that, so nothing tells whose it is: " +
		"if it is genuine, set plaintext_objects: allow for the time of the migration")
	// ErrSource says that what the store sends is not what it says of it.
	ErrSource = errors.New("what the store sends does not have the checksum that the store says it has")
)

// Encrypter encrypts objects. It is safe for concurrent use.
type Encrypter struct {
	cfg    Config
	store  *inplace.Store
	reader *stored.Reader // reads back, through Config.Check
	lost   atomic.Pointer[error]
}

// New returns an Encrypter.
func New(cfg Config) *Encrypter {
	store := cfg.Store()
	return &Encrypter{cfg: cfg, store: store, reader: cfg.Reader(store, cfg.Check)}
}

// Encrypt encrypts the object of a listing's entry, unless it is.
func (e *Encrypter) Encrypt(ctx context.Context, bucket string, entry stored.Entry) walk.Result {
	obj := crypt.Object{Bucket: bucket, Key: entry.Key}
	var before *written
	return inplace.Insist(ctx, entry, e.cfg.Away, func(ctx context.Context) (walk.Result, error) {
		if lost := e.lost.Load(); lost != nil {
			return walk.Result{}, *lost
		}
		r, err := e.attempt(ctx, obj, &before)
		if errors.Is(err, ErrLost) {
			err = fmt.Errorf("%s: %w", obj.Key, err)
			e.lost.CompareAndSwap(nil, &err)
		}
		return r, err
	})
}

// attempt looks at an object and does with it what it takes. All that it
// supposes of the object is a condition of what it writes, so that it can be
// called again whatever has happened. before is what an earlier call has tried
// to write.
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
		if w := *before; w != nil && w.isIn(ctx, e, seen) { // its answer was lost
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

	if _, err := e.cfg.Keys.KeyID(obj, e.cfg.Client, ""); err != nil || e.cfg.DryRun {
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

// written is what takes the place of an object.
type written struct {
	*original
	layout crypt.Layout    // nil for an object that is put whole
	header crypt.Header    // of the body of such a one
	up     *inplace.Upload // of another
	etag   string          // of what is stored; "" if the store has not said
}

// isIn reports whether it is what is stored. Both are drawn or named anew each
// time.
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

// numbers are those of the parts, without the one that ends them.
func (w *written) numbers() []int {
	return w.up.Numbers()[:w.layout.Parts()]
}

// onlyIf is a request that fails if the object is no longer the one with that
// ETag, or never was encrypted.
func onlyIf(obj crypt.Object, etag string) stored.Request {
	return stored.Request{
		Object:    obj,
		Header:    http.Header{"If-Match": {etag}},
		Plaintext: func() error { return inplace.ErrChanged },
	}
}

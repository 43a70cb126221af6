package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// decryptRun decrypts one object.
type decryptRun struct {
	*direct
	reader      *stored.Reader
	request     stored.Request
	again       string // the command line
	answered    bool   // the store has shown the object
	customerKey []byte
}

// decrypted is the result in JSON.
type decrypted struct {
	Type    string `json:"type"` // object
	Bucket  string `json:"bucket"`
	Key     string `json:"key"`
	Version string `json:"version_id,omitempty"`
	File    string `json:"file"`
	Size    int64  `json:"size"` // of the plaintext, in bytes: all of it was verified
}

// run reads the object. Until it is complete, the file has another name, so a
// file with the object's name is always complete. If run is repeated, it
// continues where it stopped.
func (r *decryptRun) run(ctx context.Context, o decryptOptions, stdout io.Writer) error {
	defer clear(r.customerKey)
	if o.output == "-" {
		err := r.toStream(ctx, stdout)
		if err != nil {
			err = earlyCause(ctx, err)
		}
		return err
	}
	size, err := r.toFile(ctx, o.output)
	if err != nil {
		return err
	}
	if o.format == "json" {
		at := r.request.At
		return json.NewEncoder(stdout).Encode(
			decrypted{"object", at.Bucket, at.Key, r.request.Version, o.output, size},
		)
	}
	fmt.Fprintf(r.progress, "%s: %d bytes, all verified\n", filepath.Base(o.output), size)
	return nil
}

func (r *decryptRun) toStream(ctx context.Context, w io.Writer) error {
	head, err := r.head(ctx)
	if err != nil {
		return err
	}
	return r.copy(ctx, w, head, 0)
}

// toFile writes the object to the file name. Until the object is complete,
// the file is called name.HASH.part. The hash includes the ETag, so toFile
// never continues a file of another object or of an older one.
func (r *decryptRun) toFile(ctx context.Context, name string) (size int64, err error) {
	head, err := r.head(ctx)
	if err != nil {
		return 0, earlyCause(ctx, err)
	}
	state := sha256.Sum256([]byte(r.names() + "\n" + head.Header.Get("Etag")))

	part := name + "." + hex.EncodeToString(state[:4]) + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()

	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() > head.Size {
		return 0, fmt.Errorf("%s is longer than the object: remove it", part)
	}

	if err := r.copy(ctx, f, head, info.Size()); err != nil {
		return 0, fmt.Errorf(
			"%w\nthe bytes verified so far are in %s\nto continue: %s", earlyCause(ctx, err), part, r.again,
		)
	}

	if err := errors.Join(f.Sync(), f.Close(), os.Rename(part, name)); err != nil {
		return 0, err
	}
	return head.Size, nil
}

// names returns where the object is, and the name under which it was put if
// that is another one.
func (r *decryptRun) names() string {
	at, was := r.request.At, r.request.Object
	text := at.Bucket + "/" + at.Key
	if was != at {
		text += "\n" + was.Bucket + "/" + was.Key
	}
	return text
}

// head asks the store for the object without its body.
func (r *decryptRun) head(ctx context.Context) (head *stored.Object, err error) {
	err = r.insist(ctx, func(ctx context.Context) (err error) {
		head, err = r.reader.Head(ctx, r.request)
		return err
	})
	r.answered = err == nil
	return head, err
}

// copy writes the object to w, without its first done bytes. Where the store
// breaks off, copy goes on.
func (r *decryptRun) copy(ctx context.Context, w io.Writer, head *stored.Object, done int64) error {
	bar := newProgress(r.progress, "decrypt", workOfBytes)
	bar.total(amount{1, head.Size - done}) // the bytes that are still to be read
	bar.start(ctx, nil)
	defer bar.end()
	r.progress = bar.above(r.progress)
	out := &counted{w: bar.above(w), n: done, bar: bar}

	// There is no pause after an attempt that has read something, and only
	// attempts in a row that have read nothing are counted.
	step := func(ctx context.Context) error {
		return whileItMoves(out, func() error { return r.copyRest(ctx, out, head) })
	}
	return whileItMoves(out, func() error { return r.insist(ctx, step) })
}

// whileItMoves repeats attempts while each has written something before the
// store broke off.
func whileItMoves(out *counted, attempt func() error) error {
	for {
		begun := out.n
		if err := attempt(); out.n == begun || !errors.Is(err, inplace.ErrUnanswered) {
			return err
		}
	}
}

// counted counts the bytes of an object that were written.
type counted struct {
	w   io.Writer
	n   int64
	bar *progress
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.bar.add(amount{0, int64(n)})
	return n, err
}

// copyRest writes what out does not have yet of the object.
func (r *decryptRun) copyRest(ctx context.Context, out *counted, head *stored.Object) error {
	q := r.request
	q.Header = http.Header{"If-Match": {head.Header.Get("Etag")}}
	switch {
	case out.n > 0 && out.n == head.Size:
		return nil
	case out.n > 0:
		q.Range = stored.Bytes(out.n, head.Size-out.n)
	}

	o, err := r.reader.Get(ctx, q)
	if err != nil {
		return err
	}
	defer o.Close()
	if out.n > 0 {
		fmt.Fprintf(r.progress, "continuing at byte %d of %d\n", out.n, head.Size)
	}
	for {
		text, err := o.Next(ctx)
		if err == io.EOF { //nolint:errorlint // Next returns io.EOF unwrapped
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := out.Write(text); err != nil {
			return err
		}
	}
}

// insist repeats attempts as the other commands do: while the store falters,
// and while a KMS does not answer. An object that is another one now is not
// read, and a store that has never answered is not waited for.
func (r *decryptRun) insist(ctx context.Context, attempt func(context.Context) error) error {
	result := inplace.Insist(ctx, stored.Entry{}, r.away, func(ctx context.Context) (walk.Result, error) {
		err := attempt(ctx)
		switch stored.StatusOf(err) {
		case http.StatusNotFound, http.StatusPreconditionFailed, http.StatusConflict:
			return walk.Result{}, inplace.Final(err)
		}
		if err != nil && !r.answered && !kms.IsUnreachable(err) && !kms.IsThrottled(err) {
			err = inplace.Final(err)
		}
		return walk.Result{}, err
	})
	return result.Err
}

// Package inventory lists which KMS key protects which object of a bucket,
// as the envelopes say. It does not use the KMS, so it also works if a key
// is lost. Nothing that it reports is verified.
//
// There is no example: it needs a store. docs/rewrap.md shows the command.
package inventory

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// The kinds of objects.
const (
	Single    = "single"    // a single-PUT object, with one envelope
	Multipart = "multipart" // a multipart object: each part has its own header
	Plaintext = "plaintext" // never encrypted
	Broken    = "error"     // see Object.Error
)

// Object is an object and the keys that protect it.
type Object struct {
	Type    string `json:"type"` // object
	Key     string `json:"key"`
	Version string `json:"version_id,omitempty"`
	Latest  bool   `json:"latest"`
	ETag    string `json:"etag,omitempty"` // the store's, without quotes
	Size    int64  `json:"size"`           // of the plaintext, in bytes; -1 if not known
	Kind    string `json:"kind"`
	Parts   int    `json:"parts,omitempty"` // in the store, with an appended final part
	// Format is the version of the format; 0 for plaintext.
	Format crypt.Version `json:"format,omitempty"`
	Sealed bool          `json:"sealed_metadata,omitempty"`
	Keys   []Key         `json:"kms_keys"`
	Error  string        `json:"error,omitempty"`

	listed int64 // see Stored
	gone   bool  // deleted after it was listed
}

// Stored returns the size in the store, in bytes, as it was listed.
func (o *Object) Stored() int64 { return o.listed }

// Key is a KMS key as an envelope names it. Name is its name in the
// configuration, and Version the version of the key; "-" if not known.
type Key struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
	// Recovery has the ids of the recovery keys, separated by spaces; "-" for
	// none.
	Recovery string `json:"recovery"`
}

// Config configures an Inventory.
type Config struct {
	// Reader reads headers from the store.
	Reader *stored.Reader
	// KeyNames maps the ids of KMS keys to their names.
	KeyNames map[string]string
	// Quick trusts the mark from the creation of a multipart object.
	// Otherwise the header of each part is read.
	Quick bool
	// Parallel is the number of objects that are read at the same time.
	Parallel int
}

// Inventory lists the objects of a bucket with their keys.
type Inventory struct{ cfg Config }

// New returns an Inventory.
func New(cfg Config) *Inventory { return &Inventory{cfg} }

// ahead is the largest number of results that wait for an earlier one.
const ahead = 2000

// Objects yields the objects of a listing in order. If an error ends the
// listing, it yields the error last.
func (i *Inventory) Objects(ctx context.Context, l stored.Listing) iter.Seq2[Object, error] {
	look := func(ctx context.Context, e stored.Entry) Object { return i.object(ctx, l.Bucket, e) }
	return func(yield func(Object, error) bool) {
		for o, err := range walk.InOrder(ctx, i.cfg.Reader.List(ctx, l), i.cfg.Parallel, ahead, look) {
			if !o.gone && !yield(o, err) {
				return
			}
		}
	}
}

// object returns one object with its keys.
func (i *Inventory) object(ctx context.Context, bucket string, e stored.Entry) Object {
	o := Object{
		Type: "object", Key: e.Key, Version: e.Version, Latest: e.Latest, Size: -1, Keys: []Key{}, listed: e.Size,
	}
	q := stored.Request{Object: crypt.Object{Bucket: bucket, Key: e.Key}, Version: e.Version}
	err := i.look(ctx, q, &o)
	if stored.StatusOf(err) == http.StatusNotFound && !strings.ContainsRune(e.Key, '\uFFFD') {
		o.gone = true
		return o
	}
	if err != nil {
		o.Kind, o.Error = Broken, err.Error()
	}
	return o
}

func (i *Inventory) look(ctx context.Context, q stored.Request, o *Object) error {
	seen, err := i.cfg.Reader.Look(ctx, q)
	if err != nil {
		return err
	}
	o.ETag = strings.Trim(seen.ETag, `"`)

	if o.Size, err = seen.Size(); err != nil {
		o.Size = -1
		return err
	}

	o.Format, o.Sealed = seen.Version(), seen.Metadata() != nil
	switch {
	case seen.Plaintext:
		o.Kind = Plaintext
	case seen.Envelope != nil:
		o.Kind = Single
		o.add(i.key(seen.Envelope.KeyID, seen.Envelope.WrappedDEK))
	case i.cfg.Quick:
		o.Kind, o.Parts = Multipart, max(seen.Parts, 0)
		o.add(i.key(seen.Mark.KeyID, nil))
	default:
		o.Kind = Multipart
		return i.lookAtParts(ctx, q, seen, o)
	}

	return nil
}

// lookAtParts reads the header of each part. Parts of one upload can be
// under several keys, if the rules changed during the upload.
func (i *Inventory) lookAtParts(ctx context.Context, q stored.Request, seen *stored.Seen, o *Object) error {
	var size int64
	for part, err := range i.cfg.Reader.PartHeaders(ctx, q, seen) {
		if err != nil {
			return fmt.Errorf("after part %d: %w", o.Parts, err)
		}
		o.Parts++
		size += part.Size
		o.add(i.key(part.KeyID, part.WrappedDEK))
	}

	if o.Size >= 0 && size != o.Size {
		return fmt.Errorf("%w: parts of %d bytes in an object of %d", stored.ErrIntegrity, size, o.Size)
	}
	o.Size = size
	return nil
}

func (o *Object) add(k Key) {
	if !slices.Contains(o.Keys, k) {
		o.Keys = append(o.Keys, k)
	}
}

// key returns the KMS key that an envelope names.
func (i *Inventory) key(id string, wrapped []byte) Key {
	k := Key{ID: id, Name: "-", Version: "-", Recovery: "-"}
	if name := i.cfg.KeyNames[id]; name != "" {
		k.Name = name
	}
	if version := kms.VersionOf(id, wrapped); version != "" {
		k.Version = version
	}
	if keys, recovery := kms.KeysOf(id, wrapped); len(keys) > 1 || len(recovery) > 0 {
		k.Recovery = cmp.Or(strings.Join(recovery, " "), "-")
	}
	return k
}

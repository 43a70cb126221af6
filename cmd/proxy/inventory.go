package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// inventory says which KMS key protects which object, as their envelopes have it. It asks no KMS: it is also for the day
// on which a key is gone. So nothing of what it says is verified; `proxy decrypt` does that.
func inventory(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("inventory", flag.ContinueOnError)
	config := flags.String("config", "", "path of the configuration `FILE`")
	format := flags.String("format", "table", "table, csv (RFC 4180), or json (an object a line)")
	versions := flags.Bool("versions", false, "all versions of the objects, and not the current ones only")
	quick := flags.Bool("quick", false, "of an object in parts believe the mark that it was created with, and not the header of each part")
	parallel := flags.Int("parallel", 16, "`N` objects at a time")
	target, err := parseBucket(flags, args, stdout)
	if err != nil {
		return err
	}
	if err := checkParallel(*parallel); err != nil {
		return err
	}
	cfg, err := loadConfig(*config)
	if err != nil {
		return err
	}
	d, err := openDirect(ctx, cfg, target, os.Stderr)
	if err != nil {
		return err
	}
	defer d.close()
	out, err := newInventoryWriter(*format, stdout, d.progress)
	if err != nil {
		return err
	}
	s := &stocktaking{direct: d, store: d.reader(), names: d.keyNames(), quick: *quick}
	return s.run(ctx, *versions, *parallel, out)
}

// What an object can be.
const (
	kindSingle    = "single"
	kindMultipart = "multipart"
	kindPlaintext = "plaintext"
	kindBroken    = "error"
)

// protection is one line of an inventory.
type protection struct {
	Type    string   `json:"type"` // object
	Key     string   `json:"key"`
	Version string   `json:"version_id,omitempty"`
	Latest  bool     `json:"latest"`
	ETag    string   `json:"etag,omitempty"` // the store's, without its quotes
	Size    int64    `json:"size"`           // of the plaintext, in bytes; -1 if it is not known
	Kind    string   `json:"kind"`
	Parts   int      `json:"parts,omitempty"` // in the store: one that the proxy appended is among them
	Keys    []kmsKey `json:"kms_keys"`
	Error   string   `json:"error,omitempty"`

	gone bool // it was deleted since it was listed
}

// kmsKey is a KMS key as an envelope names it. Name is that of the configuration and Version that of the key; "-" for
// what is not known.
type kmsKey struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
}

// stocktaking finds out what protects the objects of a bucket.
type stocktaking struct {
	*direct
	store *stored.Reader
	names map[string]string
	quick bool
}

// ahead is how many lines wait for an earlier one at most.
const ahead = 2000

func (s *stocktaking) run(ctx context.Context, versions bool, parallel int, out inventoryWriter) error {
	bar := counter(s.progress, "looked at")
	defer bar.Finish() //nolint:errcheck // nothing depends on it
	totals := newInventoryTotals()
	list := s.store.List(ctx, stored.Listing{Bucket: s.bucket, Prefix: s.prefix, Versions: versions})
	for p, err := range walk.InOrder(ctx, list, parallel, ahead, s.protection) {
		if err != nil {
			return err
		}
		_ = bar.Add(1)
		if p.gone {
			continue
		}
		totals.add(p)
		if err := out.row(p); err != nil {
			return err
		}
	}
	if err := out.end(totals); err != nil {
		return err
	}
	if totals.broken > 0 {
		return fmt.Errorf("of %d objects it cannot be said what protects them", totals.broken)
	}
	return nil
}

// protection looks at one object.
func (s *stocktaking) protection(ctx context.Context, e stored.Entry) protection {
	p := protection{Type: "object", Key: e.Key, Version: e.Version, Latest: e.Latest, Size: -1, Keys: []kmsKey{}}
	q := stored.Request{Object: crypt.Object{Bucket: s.bucket, Key: e.Key}, Version: e.Version}
	err := s.look(ctx, q, &p)
	if answer := (*storeError)(nil); errors.As(err, &answer) && answer.status == http.StatusNotFound && !strings.ContainsRune(e.Key, '\uFFFD') {
		p.gone = true
		return p
	}
	if err != nil {
		p.Kind, p.Error = kindBroken, err.Error()
	}
	return p
}

func (s *stocktaking) look(ctx context.Context, q stored.Request, p *protection) error {
	seen, err := s.store.Look(ctx, q)
	if err != nil {
		return err
	}
	p.ETag = strings.Trim(seen.ETag, `"`)
	if p.Size, err = seen.Size(); err != nil {
		p.Size = -1
		return err
	}
	switch {
	case seen.Plaintext:
		p.Kind = kindPlaintext
	case seen.Envelope != nil:
		p.Kind = kindSingle
		p.use(s.key(seen.Envelope.KeyID, seen.Envelope.WrappedDEK))
	case s.quick:
		p.Kind, p.Parts = kindMultipart, max(seen.Parts, 0)
		p.use(s.key(seen.Mark.KeyID, nil))
	default:
		p.Kind = kindMultipart
		return s.lookAtParts(ctx, q, seen, p)
	}
	return nil
}

// lookAtParts reads the header of each part: parts of one upload can be under several keys, if the rules changed meanwhile.
func (s *stocktaking) lookAtParts(ctx context.Context, q stored.Request, seen *stored.Seen, p *protection) error {
	var size int64
	for part, err := range s.store.PartHeaders(ctx, q, seen) {
		if err != nil {
			return fmt.Errorf("behind part %d: %w", p.Parts, err)
		}
		p.Parts++
		size += part.Size
		p.use(s.key(part.KeyID, part.WrappedDEK))
	}
	if p.Size >= 0 && size != p.Size {
		return fmt.Errorf("%w: parts of %d bytes in an object of %d", stored.ErrIntegrity, size, p.Size)
	}
	p.Size = size
	return nil
}

func (p *protection) use(k kmsKey) {
	if !slices.Contains(p.Keys, k) {
		p.Keys = append(p.Keys, k)
	}
}

// key is the KMS key that an envelope names.
func (s *stocktaking) key(id string, wrapped []byte) kmsKey {
	k := kmsKey{ID: id, Name: "-", Version: "-"}
	if name := s.names[id]; name != "" {
		k.Name = name
	}
	if version := kms.VersionOf(id, wrapped); version != "" {
		k.Version = version
	}
	return k
}

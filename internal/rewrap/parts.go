package rewrap

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// moveParts reads a multipart object and uploads it anew, with parts of the same numbers and lengths, and the one at the
// end that the proxy had appended, if it had: sizes in listings and part numbers stay. It returns the parts.
func (m *Mover) moveParts(ctx context.Context, obj crypt.Object, seen *stored.Seen) (crypt.Layout, error) {
	src, err := m.survey(ctx, obj, seen)
	if err != nil {
		return nil, err
	}
	sealed, err := m.cfg.Keys.Create(ctx, obj, m.cfg.Client, keyring.Choice{KeyID: m.cfg.To})
	if err != nil {
		return nil, err
	}
	defer sealed.Release()
	if err := m.proves(ctx, obj, sealed); err != nil {
		return nil, err
	}
	mark, err := crypt.Mark{KeyID: sealed.KeyID}.Metadata()
	if err != nil {
		return nil, err
	}
	header, err := stored.Carry(seen.Header, mark)
	if err != nil {
		return nil, err
	}
	if err := m.carryTags(ctx, obj, header); err != nil {
		return nil, err
	}
	up, err := m.create(ctx, obj, header)
	if err != nil {
		return nil, err
	}
	if err := m.reupload(ctx, src, sealed, up); err != nil {
		up.abort(ctx)
		return nil, err
	}
	return src.layout, m.confirmParts(ctx, src, up)
}

// source is a multipart object that is to be uploaded anew.
type source struct {
	request  stored.Request // fails if the object is another one
	seen     *stored.Seen
	layout   crypt.Layout
	appended bool // the object ends with a part that is in no layout
	checksum stored.Checksum
}

// survey finds out the parts of an object, each of which verifies or is in the record.
func (m *Mover) survey(ctx context.Context, obj crypt.Object, seen *stored.Seen) (*source, error) {
	s := &source{request: onlyIf(obj, seen.ETag), seen: seen}
	head, err := m.reader.Head(ctx, s.request)
	if err != nil {
		return nil, err
	}
	if s.layout, err = m.reader.Layout(ctx, s.request, head); err != nil {
		return nil, err
	}
	if len(s.layout) == 0 {
		return nil, errChanged
	}
	s.appended = seen.Stored != s.layout.Size()+int64(s.layout.Parts())*crypt.PartOverhead
	s.checksum, err = head.Checksum(ctx)
	return s, err
}

// reupload sends all parts and completes the upload.
func (m *Mover) reupload(ctx context.Context, src *source, sealed *keyring.Sealed, up *upload) error {
	o, err := m.reader.Get(ctx, src.request)
	if err != nil {
		return err
	}
	defer o.Close()
	text := &faulty{r: o.Reader(ctx)}
	last := 0
	for i := range src.layout.Parts() {
		at, _ := src.layout.At(i)
		last = at.Number
		part := crypt.Part{Number: at.Number, Size: at.Size, Final: crypt.IsFinal(at.Number, at.Size)}
		err := m.sendPart(ctx, up, part, io.LimitReader(text, at.Size), sealed)
		if text.err != nil {
			return text.err // the store was left with half a part for it
		}
		if err != nil {
			return err
		}
	}
	// The object's end is verified behind its last byte.
	if n, err := io.ReadFull(text, make([]byte, 1)); n > 0 || err != io.EOF { // bare: Reader says so
		return errors.Join(fmt.Errorf("%w: it does not end with its last part", stored.ErrIntegrity), err)
	}
	if src.appended {
		sum, err := crypt.SealChecksums(src.checksum.Digests, sealed.DEK(), m.cfg.Random)
		if err != nil {
			return err
		}
		end := crypt.Part{Number: last + 1, Final: true, Record: crypt.NewRecord(src.layout, src.checksum.Type, sum)}
		if err := m.sendPart(ctx, up, end, bytes.NewReader(nil), sealed); err != nil {
			return err
		}
	}
	if !m.cfg.Abilities.CompleteIfMatch {
		if err := m.unchanged(ctx, up.obj, src.seen.ETag); err != nil {
			return err
		}
		return up.complete(ctx, "")
	}
	return up.complete(ctx, src.seen.ETag)
}

// faulty remembers why a source failed, which a transport may not hand on.
type faulty struct {
	r   io.Reader
	err error
}

func (f *faulty) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && err != io.EOF { // bare, as every io.Reader must say it
		f.err = err
	}
	return n, err
}

func (m *Mover) sendPart(ctx context.Context, up *upload, part crypt.Part, text io.Reader, sealed *keyring.Sealed) error {
	if err := sealed.Check(ctx); err != nil {
		return err
	}
	part.Upload, part.KeyID, part.WrappedDEK = crypt.UploadOf(up.id), sealed.KeyID, sealed.Wrapped
	sealer, err := crypt.NewPartSealer(text, &part, up.obj, sealed.DEK(), m.cfg.Random)
	if err != nil {
		return err
	}
	defer func() { _ = sealer.Close() }() // it only gives a buffer back
	if err := up.send(ctx, part.Number, &payload{sealer, part.Size + crypt.PartOverhead}); err != nil {
		return fmt.Errorf("part %d: %w", part.Number, err)
	}
	return nil
}

// confirmParts reads what is stored now through the new key: the record, or else the header of each part.
func (m *Mover) confirmParts(ctx context.Context, src *source, up *upload) error {
	q := request(up.obj)
	seen, err := m.check.Look(ctx, q)
	if status(err) == http.StatusNotFound {
		return nil // deleted since
	}
	if err != nil {
		return fmt.Errorf("it was moved, and could not be looked at after: %w", err)
	}
	if seen.ETag != up.etag {
		return errChanged // overwritten since: what is there now is looked at in its turn
	}
	var layout crypt.Layout
	head, err := m.check.Head(ctx, q)
	if err == nil {
		layout, err = m.check.Layout(ctx, q, head)
	}
	switch {
	case err != nil:
		return fmt.Errorf("it was moved, and does not verify after: %w", err)
	case !slices.Equal(layout, src.layout):
		return fmt.Errorf("%w: it was moved, and has other parts than before", stored.ErrIntegrity)
	}
	return nil
}

// upload is a multipart upload in the works.
type upload struct {
	m     *Mover
	obj   crypt.Object
	id    string
	parts []completedPart
	etag  string // of the completed object
}

type completedPart struct {
	PartNumber int
	ETag       string
}

// abortTimeout bounds the cleaning up behind an upload that failed.
const abortTimeout = 10 * time.Second

func sha256Of(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (m *Mover) create(ctx context.Context, obj crypt.Object, header http.Header) (*upload, error) {
	body, err := m.ask(ctx, http.MethodPost, obj, "uploads=", header, nil)
	if err != nil {
		return nil, err
	}
	var doc struct {
		UploadId string
	}
	if err := xml.Unmarshal(body, &doc); err != nil || doc.UploadId == "" {
		return nil, fmt.Errorf("%w answered without an upload id: %.200q", stored.ErrStore, body)
	}
	return &upload{m: m, obj: obj, id: doc.UploadId}, nil
}

func (u *upload) send(ctx context.Context, number int, p *payload) error {
	resp, err := u.m.send(newRequest(ctx, http.MethodPut, u.obj, u.query(number), nil, p))
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	u.parts = append(u.parts, completedPart{number, resp.Header.Get("Etag")})
	return nil
}

// complete makes the object, if the one that is there has the ETag; "" for whatever is there.
func (u *upload) complete(ctx context.Context, etag string) error {
	doc, err := xml.Marshal(struct {
		XMLName xml.Name        `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CompleteMultipartUpload"`
		Part    []completedPart `xml:"Part"`
	}{Part: u.parts})
	if err != nil {
		return err
	}
	header := http.Header{"Content-Type": {"application/xml"}, "X-Amz-Content-Sha256": {sha256Of(doc)}} // in place of the framing of uploads
	if etag != "" {
		header.Set("If-Match", etag)
	}
	body, err := u.m.ask(ctx, http.MethodPost, u.obj, u.query(0), header, &payload{bytes.NewReader(doc), int64(len(doc))})
	if err != nil {
		return err
	}
	u.etag, err = etagOf(body)
	return err
}

// abort removes the parts. It is tried also when the work was canceled; what is left after all is the lifecycle rule's.
func (u *upload) abort(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	_, _ = u.m.ask(ctx, http.MethodDelete, u.obj, u.query(0), nil, nil) // the upload may be completed, or never have begun
}

// query names the upload, and a part of it unless number is 0.
func (u *upload) query(number int) string {
	query := url.Values{"uploadId": {u.id}}
	if number > 0 {
		query.Set("partNumber", strconv.Itoa(number))
	}
	return query.Encode()
}

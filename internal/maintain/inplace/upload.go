package inplace

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // most stores use MD5 for ETags
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Upload is a multipart upload in progress.
type Upload struct {
	store    *Store
	obj      crypt.Object
	uploadID string
	mark     *crypt.Mark // of sealed parts
	parts    []completedPart
	tags     []crypt.Tag
	ETag     string // ETag of the completed object
}

type completedPart struct {
	PartNumber    int
	ETag          string
	ChecksumCRC32 string `xml:",omitempty"` // see stored.PartChecksum
}

// abortTimeout limits the cleanup after an upload that failed.
const abortTimeout = 10 * time.Second

// CreateSealed starts an upload of sealed parts. The headers become metadata.
func (s *Store) CreateSealed(
	ctx context.Context, obj crypt.Object, header http.Header, key *Key, format keyring.Format, random io.Reader,
) (*Upload, error) {
	mark := &crypt.Mark{Version: format.Version, KeyID: key.KeyID, WrappedDEK: key.Wrapped}
	var entries map[string]string
	var err error
	if format.SealMetadata {
		if entries, err = stored.TakeMetadata(header); err != nil {
			return nil, err
		}
	}
	if mark, err = stored.NewMark(*mark, entries, obj, key.DEK(), random); err != nil {
		return nil, err
	}
	metadata, err := mark.Metadata()
	if err != nil {
		return nil, err
	}
	stored.SetEnvelope(header, metadata)

	u, err := s.Create(ctx, obj, header)
	if err != nil {
		return nil, err
	}
	u.mark = mark
	return u, nil
}

// Create starts an upload with the given headers. Its parts are sent as they
// are.
func (s *Store) Create(ctx context.Context, obj crypt.Object, header http.Header) (*Upload, error) {
	body, err := s.Ask(ctx, http.MethodPost, obj, "uploads=", header, nil)
	if err != nil {
		return nil, err
	}
	var doc struct {
		UploadId string
	}
	if err := xml.Unmarshal(body, &doc); err != nil || doc.UploadId == "" {
		return nil, fmt.Errorf("%w answered without an upload id: %.200q", stored.ErrStore, body)
	}
	return &Upload{store: s, obj: obj, uploadID: doc.UploadId}, nil
}

// Send sends a part. If ETags are MD5s, it verifies that the store has
// received the same bytes.
func (u *Upload) Send(ctx context.Context, number int, p *Payload) error {
	sum := md5.New() //nolint:gosec // the ETag is compared with it
	if u.store.ETagIsMD5 {
		p = &Payload{io.TeeReader(p.Body, sum), p.Length}
	}

	resp, err := u.store.Do(NewRequest(ctx, http.MethodPut, u.obj, u.query(number), nil, p))
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}

	etag := resp.Header.Get("Etag")
	if u.store.ETagIsMD5 && strings.Trim(etag, `"`) != hex.EncodeToString(sum.Sum(nil)) {
		return fmt.Errorf(
			"%w received other bytes of the part than were sent, or does not use MD5 for the ETag: %s",
			stored.ErrStore,
			etag,
		)
	}

	u.parts = append(u.parts, completedPart{number, etag, stored.PartChecksumOf(resp.Header)})
	return nil
}

// Seal encrypts a part and sends it. Each byte is decrypted again before it
// is sent, with the data key that the KMS has unwrapped. seen, if not nil,
// is stored.Checked.Seen.
func (u *Upload) Seal(
	ctx context.Context,
	part crypt.Part,
	text io.Reader,
	key *Key,
	random io.Reader,
	seen func([]byte) error,
) error {
	err := u.sealPart(ctx, part, text, key, random, seen)
	if err != nil {
		return fmt.Errorf("part %d: %w", part.Number, err)
	}
	return nil
}

func (u *Upload) sealPart(
	ctx context.Context,
	part crypt.Part,
	text io.Reader,
	key *Key,
	random io.Reader,
	seen func([]byte) error,
) error {
	if err := key.Check(ctx); err != nil {
		return err
	}
	u.bind(&part, key)
	sealer, err := crypt.NewPartSealer(text, &part, u.obj, key.DEK(), random)
	if err != nil {
		return err
	}
	defer func() { _ = sealer.Close() }() // it only returns a buffer

	body, err := stored.CheckPart(ctx, sealer, u.obj, key.Proof)
	if err != nil {
		return err
	}
	defer body.Close()
	body.Seen = seen
	err = u.Send(ctx, part.Number, &Payload{body, part.Size + crypt.PartOverhead})

	if body.Err != nil {
		// The error of the request to the store is only its result.
		return body.Err
	}
	if err == nil {
		u.tags = append(u.tags, part.Tag())
	}
	return err
}

// bind sets what binds a part to the upload and to its key.
func (u *Upload) bind(part *crypt.Part, key *Key) {
	part.Upload, part.SealedMeta = crypt.UploadOf(u.mark.Random, u.uploadID), u.mark.Meta != nil
	part.KeyID, part.WrappedDEK = key.KeyID, key.Wrapped
}

// End sends the final part of an upload whose last part cannot be recognized
// as the last. The final part records all parts.
func (u *Upload) End(ctx context.Context, layout crypt.Layout, sum stored.Checksum, key *Key, random io.Reader) error {
	sealed, err := crypt.SealChecksums(sum.Digests, key.DEK(), random)
	if err != nil {
		return err
	}

	last, _ := layout.At(layout.Parts() - 1)
	part := crypt.Part{
		Number: last.Number + 1, Final: true,
		Record: crypt.NewRecord(u.mark.Version, layout, sum.Type, sealed, u.tags),
	}
	u.bind(&part, key)

	sealer, err := crypt.NewPartSealer(http.NoBody, &part, u.obj, key.DEK(), random)
	if err != nil {
		return err
	}
	defer func() { _ = sealer.Close() }() // it only returns a buffer

	body := make([]byte, crypt.PartOverhead)
	if _, err := io.ReadFull(sealer, body); err != nil {
		return err
	}

	again, err := crypt.ParsePart(body)
	if err != nil {
		return err
	}
	if err := again.Verify(key.Proof.DEK(), u.obj); err != nil {
		return err
	}

	return u.Send(ctx, part.Number, &Payload{bytes.NewReader(body), int64(len(body))})
}

// Complete completes the upload, if the current object has the ETag. An
// empty etag means no condition.
func (u *Upload) Complete(ctx context.Context, etag string) error {
	doc, err := xml.Marshal(struct {
		XMLName xml.Name        `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CompleteMultipartUpload"`
		Part    []completedPart `xml:"Part"`
	}{Part: u.parts})
	if err != nil {
		return err
	}

	digest := sha256.Sum256(doc)
	header := http.Header{
		"Content-Type":         {"application/xml"},
		"X-Amz-Content-Sha256": {hex.EncodeToString(digest[:])},
	} // instead of the framing of uploads

	if etag != "" {
		header.Set("If-Match", etag)
	}

	body, err := u.store.Ask(
		ctx,
		http.MethodPost,
		u.obj,
		u.query(0),
		header,
		&Payload{bytes.NewReader(doc), int64(len(doc))},
	)
	if err != nil {
		return err
	}

	if isEmptyETag(body) {
		u.ETag = u.usualETag()
		return nil
	}
	u.ETag, err = ETagOf(body)
	return err
}

// isEmptyETag reports whether the answer to a completion has no ETag. Ceph
// (radosgw 16.2) sends an empty one.
func isEmptyETag(body []byte) bool {
	var doc struct {
		XMLName xml.Name
		ETag    string
	}
	err := xml.Unmarshal(body, &doc)
	return err == nil && doc.XMLName.Local == "CompleteMultipartUploadResult" && doc.ETag == ""
}

// usualETag returns the ETag that S3 gives to a multipart object: the MD5 of
// the MD5s of the parts. If the store has another one, the object counts as
// overwritten, and is looked at again.
func (u *Upload) usualETag() string {
	sum := md5.New() //nolint:gosec // that of S3
	for _, p := range u.parts {
		part, err := hex.DecodeString(strings.Trim(p.ETag, `"`))
		if err != nil {
			return ""
		}
		sum.Write(part)
	}
	return fmt.Sprintf(`"%x-%d"`, sum.Sum(nil), len(u.parts))
}

// Abort removes the parts, even if ctx was canceled. If it fails, the
// bucket's lifecycle rule must remove them.
func (u *Upload) Abort(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	// It also fails for an upload that was completed, or that never started.
	_, _ = u.store.Ask(ctx, http.MethodDelete, u.obj, u.query(0), nil, nil)
}

// ID returns the store's upload id.
func (u *Upload) ID() string { return u.uploadID }

// Numbers returns the numbers of the parts that were sent.
func (u *Upload) Numbers() []int {
	var out []int
	for _, p := range u.parts {
		out = append(out, p.PartNumber)
	}
	return out
}

// query returns the query for the upload, or for a part of it if number is
// not 0.
func (u *Upload) query(number int) string {
	query := url.Values{"uploadId": {u.uploadID}}
	if number > 0 {
		query.Set("partNumber", strconv.Itoa(number))
	}
	return query.Encode()
}

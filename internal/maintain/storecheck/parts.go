package storecheck

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// partNumber finds the number of parts at the end of a multipart ETag.
var partNumber = regexp.MustCompile(`-3"?$`)

// PartSettings are the settings of the origin that are about multipart uploads.
type PartSettings struct {
	ETagPartCount bool // origin.etag_part_count
	UniformParts  bool // origin.uniform_parts
}

// Multipart stores a small multipart object as the proxy would: two parts of
// different lengths, and the part that the proxy appends. It finds out whether
// the ETag names the number of parts, which sizes in listings follow from, and
// whether the settings say so.
func (p *Probe) Multipart(ctx context.Context, settings PartSettings) (string, error) {
	const size = crypt.MinPartSize + crypt.PartOverhead
	path := p.path(p.name + "-parts")
	lengths := []int{size + 1, size, crypt.PartOverhead}
	if settings.UniformParts {
		lengths[0] = size
	}

	etag, err := p.putParts(ctx, path, lengths)
	if err != nil {
		return "", err
	}
	if _, err := p.do(ctx, http.MethodDelete, path, nil, nil, 0); err != nil {
		return "", err
	}

	switch named := partNumber.MatchString(etag); {
	case named && settings.ETagPartCount:
		return "ETag " + etag, nil
	case named:
		return "ETag " + etag + " names the number of parts: origin.etag_part_count could be true, and listings would need no further requests", nil
	case settings.ETagPartCount:
		return "", fmt.Errorf(
			"the ETag %s does not name the number of parts, so sizes in listings would be wrong: set origin.etag_part_count to false",
			etag,
		)
	default:
		return "ETag " + etag + " does not name the number of parts: each object of a listing that is not remembered costs a HEAD", nil
	}
}

// putParts uploads an object of zeros in parts, and returns its ETag. An upload
// that fails is aborted.
func (p *Probe) putParts(ctx context.Context, path string, sizes []int) (string, error) {
	upload, err := p.createUpload(ctx, path)
	if err != nil {
		return "", err
	}
	etag, err := p.completeParts(ctx, path, upload, sizes)
	if err != nil {
		return "", errors.Join(err, p.abort(ctx, path, upload))
	}
	return etag, nil
}

func (p *Probe) completeParts(ctx context.Context, path, upload string, sizes []int) (string, error) {
	for i, size := range sizes {
		if _, err := p.sendPart(ctx, path, upload, i+1, make([]byte, size)); err != nil {
			return "", fmt.Errorf("part %d of %d bytes: %w", i+1, size, err)
		}
	}

	// As the proxy does: with what the store itself lists.
	listed, err := p.do(ctx, http.MethodGet, path+"?"+upload, nil, nil, 0)
	if err != nil {
		return "", err
	}

	var parts struct{ Part []part }
	if err := xml.Unmarshal(listed.body, &parts); err != nil || len(parts.Part) != len(sizes) {
		return "", fmt.Errorf("ListParts: %s", listed)
	}

	got, err := p.complete(ctx, path, upload, parts.Part, make(http.Header))
	if err != nil {
		return "", err
	}

	var done struct{ ETag string }
	if err := xml.Unmarshal(got.body, &done); err != nil || got.status != http.StatusOK || done.ETag == "" {
		return "", fmt.Errorf(
			"the store does not take parts of different lengths with a small one at the end, which the proxy appends (would it with origin.uniform_parts: true?): CompleteMultipartUpload: %s",
			got,
		)
	}

	return done.ETag, nil
}

// part is a part of an upload in S3's documents.
type part struct {
	PartNumber    int
	ETag          string
	ChecksumCRC32 string `xml:",omitempty"` // see stored.PartChecksum
}

// createUpload begins an upload, and returns its id as a query.
func (p *Probe) createUpload(ctx context.Context, path string) (string, error) {
	got, err := p.do(ctx, http.MethodPost, path+"?uploads=", nil, nil, 0)
	if err != nil {
		return "", err
	}
	var created struct{ UploadId string }
	if err := xml.Unmarshal(got.body, &created); err != nil || created.UploadId == "" {
		return "", fmt.Errorf("CreateMultipartUpload: %s", got)
	}
	return "uploadId=" + url.QueryEscape(created.UploadId), nil
}

func (p *Probe) sendPart(ctx context.Context, path, upload string, number int, body []byte) (part, error) {
	got, err := p.want(
		ctx,
		http.StatusOK,
		http.MethodPut,
		path+"?partNumber="+strconv.Itoa(number)+"&"+upload,
		nil,
		body,
	)
	if err != nil {
		return part{}, err
	}
	return part{PartNumber: number, ETag: got.header.Get("Etag"), ChecksumCRC32: stored.PartChecksumOf(got.header)}, nil
}

// complete ends an upload. header has its conditions.
func (p *Probe) complete(ctx context.Context, path, upload string, parts []part, header http.Header) (reply, error) {
	doc, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"CompleteMultipartUpload"`
		Part    []part
	}{Part: parts})
	if err != nil {
		return reply{}, err
	}
	sum := sha256.Sum256(doc)
	header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:])) // in place of the framing of uploads
	return p.do(ctx, http.MethodPost, path+"?"+upload, header, bytes.NewReader(doc), int64(len(doc)))
}

// abort ends an upload without a trace. One that was completed is not there any
// more.
func (p *Probe) abort(ctx context.Context, path, upload string) error {
	_, err := p.do(context.WithoutCancel(ctx), http.MethodDelete, path+"?"+upload, nil, nil, 0)
	return err
}

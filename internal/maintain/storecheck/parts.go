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

// partNumber matches the number of parts at the end of a multipart ETag.
var partNumber = regexp.MustCompile(`-3"?$`)

// PartSettings are the settings of the origin for multipart uploads.
type PartSettings struct {
	ETagPartCount bool // origin.etag_part_count
	UniformParts  bool // origin.uniform_parts
}

// Multipart stores a small multipart object like those of the proxy: two
// parts of different lengths, and a final part. It tests whether the ETag
// has the number of parts, from which sizes in listings follow, and compares
// it with the settings.
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
		return "ETag " + etag + " has the number of parts: with origin.etag_part_count: true, " +
			"listings would need no further requests", nil
	case settings.ETagPartCount:
		return "", fmt.Errorf(
			"the ETag %s does not have the number of parts, so sizes in listings would be wrong: "+
				"set origin.etag_part_count to false",
			etag,
		)
	default:
		return "ETag " + etag + " does not have the number of parts: " +
			"each object of a listing that is not cached costs a HEAD", nil
	}
}

// putParts uploads a multipart object of zeros, and returns its ETag. It
// aborts an upload that fails.
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

	// Use the parts that the store lists, as the proxy does.
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
			"the store does not accept parts of different lengths with a small one at the end, "+
				"which the proxy appends (does origin.uniform_parts: true help?): CompleteMultipartUpload: %s",
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

// createUpload starts an upload, and returns its id as a query.
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

// complete completes an upload. header has the conditions.
func (p *Probe) complete(ctx context.Context, path, upload string, parts []part, header http.Header) (reply, error) {
	doc, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"CompleteMultipartUpload"`
		Part    []part
	}{Part: parts})
	if err != nil {
		return reply{}, err
	}
	sum := sha256.Sum256(doc)
	header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:])) // instead of the framing of uploads
	return p.do(ctx, http.MethodPost, path+"?"+upload, header, bytes.NewReader(doc), int64(len(doc)))
}

// abort aborts an upload. If it was completed, the request has no effect.
func (p *Probe) abort(ctx context.Context, path, upload string) error {
	_, err := p.do(context.WithoutCancel(ctx), http.MethodDelete, path+"?"+upload, nil, nil, 0)
	return err
}

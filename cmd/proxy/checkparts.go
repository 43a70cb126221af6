package main

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

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// multipart makes a small multipart object as the proxy would: two parts of different lengths and the part that the
// proxy appends. It finds out whether the ETag names the number of parts, which sizes in listings follow from, and
// whether the setting says so.
func (p *storeProbe) multipart(ctx context.Context, origin config.Origin) (string, error) {
	const size = crypt.MinPartSize + crypt.PartOverhead
	path, counted := "/"+p.bucket+"/"+p.name+"-parts", origin.ETagPartCount
	lengths := []int{size + 1, size, crypt.PartOverhead}
	if origin.UniformParts {
		lengths[0] = size
	}
	etag, err := p.putParts(ctx, path, lengths...)
	if err != nil {
		return "", err
	}
	if _, err := p.do(ctx, http.MethodDelete, path, nil, nil, 0); err != nil {
		return "", err
	}
	switch named := regexp.MustCompile(`-3"?$`).MatchString(etag); {
	case named && counted:
		return "ETag " + etag, nil
	case named:
		return "ETag " + etag + " names the number of parts: origin.etag_part_count could be true, and listings would need no further requests", nil
	case counted:
		return "", fmt.Errorf("the ETag %s does not name the number of parts, so sizes in listings would be wrong: set origin.etag_part_count to false", etag)
	default:
		return "ETag " + etag + " does not name the number of parts: each object of a listing that is not remembered costs a HEAD", nil
	}
}

// putParts uploads an object of zeros in parts, and returns its ETag. What fails is aborted.
func (p *storeProbe) putParts(ctx context.Context, path string, sizes ...int) (string, error) {
	got, err := p.do(ctx, http.MethodPost, path+"?uploads=", nil, nil, 0)
	if err != nil {
		return "", err
	}
	var created struct{ UploadId string }
	if err := xml.Unmarshal(got.body, &created); err != nil || created.UploadId == "" {
		return "", fmt.Errorf("CreateMultipartUpload answered %d: %.300s", got.status, got.body)
	}
	upload := "uploadId=" + url.QueryEscape(created.UploadId)
	etag, err := p.completeParts(ctx, path, upload, sizes)
	if err != nil {
		_, abort := p.do(ctx, http.MethodDelete, path+"?"+upload, nil, nil, 0)
		return "", errors.Join(err, abort)
	}
	return etag, nil
}

func (p *storeProbe) completeParts(ctx context.Context, path, upload string, sizes []int) (string, error) {
	for i, size := range sizes {
		got, err := p.do(ctx, http.MethodPut, path+"?partNumber="+strconv.Itoa(i+1)+"&"+upload, nil, bytes.NewReader(make([]byte, size)), int64(size))
		if err != nil {
			return "", err
		}
		if got.status != http.StatusOK {
			return "", fmt.Errorf("part %d of %d bytes was answered %d: %.300s", i+1, size, got.status, got.body)
		}
	}
	// As the proxy does: with what the store itself lists.
	listed, err := p.do(ctx, http.MethodGet, path+"?"+upload, nil, nil, 0)
	if err != nil {
		return "", err
	}
	var parts struct {
		Part []struct {
			PartNumber    int
			ETag          string
			ChecksumCRC32 string `xml:",omitempty"` // see stored.PartChecksum
		}
	}
	if err := xml.Unmarshal(listed.body, &parts); err != nil || len(parts.Part) != len(sizes) {
		return "", fmt.Errorf("ListParts answered %d: %.300s", listed.status, listed.body)
	}
	doc, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"CompleteMultipartUpload"`
		Part    any
	}{Part: parts.Part})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(doc)
	header := http.Header{"X-Amz-Content-Sha256": {hex.EncodeToString(sum[:])}} // in place of the framing of uploads
	got, err := p.do(ctx, http.MethodPost, path+"?"+upload, header, bytes.NewReader(doc), int64(len(doc)))
	if err != nil {
		return "", err
	}
	var done struct{ ETag string }
	if err := xml.Unmarshal(got.body, &done); err != nil || got.status != http.StatusOK || done.ETag == "" {
		return "", fmt.Errorf("the store does not take parts of different lengths with a small one at the end, which the proxy appends (would it with origin.uniform_parts: true?): CompleteMultipartUpload answered %d: %.300s", got.status, got.body)
	}
	return done.ETag, nil
}

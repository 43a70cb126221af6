package storecheck

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// findPartChecksums creates an upload with a checksum algorithm, and looks
// whether ListParts has the checksum of its part.
func (p *Probe) findPartChecksums(ctx context.Context, set *capability.Set) error {
	if set[capability.Trailer] != capability.Yes {
		set[capability.PartChecksums] = set[capability.Trailer] // no part has one
		return nil
	}
	up, err := p.createUpload(ctx, p.name+"-upload", how{trailer: true, declared: true})
	if err != nil {
		return err
	}
	if err := up.send(ctx, 1, text); err != nil {
		return err
	}
	parts, err := up.list(ctx)
	if err != nil {
		return err
	}
	set[capability.PartChecksums] = capability.AnswerOf(parts[0].ChecksumCRC32 != "")
	return nil
}

// findCompletion completes uploads of one small part.
func (p *Probe) findCompletion(ctx context.Context, set *capability.Set) error {
	sent, err := p.sendUpload(ctx, p.name, *set)
	if err != nil {
		return err
	}
	got, err := sent.complete(ctx, http.Header{"If-Match": {neverAnETag}})
	if err != nil {
		return err
	}
	honored, err := refused(got)
	if err != nil {
		return fmt.Errorf("If-Match of CompleteMultipartUpload: %w", err)
	}

	key := p.name + "-parts"
	if sent, err = p.sendUpload(ctx, key, *set); err != nil {
		return err
	}
	etag, err := sent.done(ctx)
	if err != nil {
		return err
	}
	set[capability.CompleteETag] = capability.AnswerOf(etag != "")
	if etag, err = p.etag(ctx, key); err != nil {
		return err
	}
	set[capability.PartCount] = capability.AnswerOf(countedParts.MatchString(etag))

	// The condition is honored only if a completion whose condition is met
	// succeeds.
	if honored {
		if sent, err = p.sendUpload(ctx, key, *set); err != nil {
			return err
		}
		if honored, err = p.accepts(ctx, sent.completing(http.Header{"If-Match": {etag}})); err != nil {
			return fmt.Errorf("If-Match of CompleteMultipartUpload: %w", err)
		}
	}
	set[capability.CompleteIfMatch] = capability.AnswerOf(honored)
	return p.findCompletionOnce(ctx, set, key)
}

// findCompletionOnce tests If-None-Match of CompleteMultipartUpload, with
// which an object is stored only once. There is an object under key.
func (p *Probe) findCompletionOnce(ctx context.Context, set *capability.Set, key string) error {
	only := http.Header{"If-None-Match": {"*"}}
	sent, err := p.sendUpload(ctx, key, *set)
	if err != nil {
		return err
	}
	honored, err := p.refuses(ctx, sent.completing(only.Clone()))
	if err == nil && honored {
		if sent, err = p.sendUpload(ctx, key+"-new", *set); err == nil {
			honored, err = p.accepts(ctx, sent.completing(only.Clone()))
		}
	}
	if err != nil {
		return fmt.Errorf("If-None-Match of CompleteMultipartUpload: %w", err)
	}
	set[capability.CompleteIfNoneMatch] = capability.AnswerOf(honored)
	return nil
}

// countedParts matches an ETag that ends in the number of parts.
var countedParts = regexp.MustCompile(`-[0-9]+"?$`)

// Parts stores a multipart object like those of the proxy: two parts of
// different lengths, and a final part. set is what the store can do, and
// uniform is the setting origin.uniform_parts. If the store refuses it, Parts
// finds out whether the setting would help.
func (p *Probe) Parts( //nolint:revive // uniform is a setting
	ctx context.Context,
	set capability.Set,
	uniform bool,
) (string, error) {
	const size = crypt.MinPartSize + crypt.PartOverhead
	odd, equal := []int{size + 1, size, crypt.PartOverhead}, []int{size, size, crypt.PartOverhead}
	used := odd
	if uniform {
		used = equal
	}
	refusal, err := p.putParts(ctx, set, used)
	switch {
	case err != nil:
		return "", err
	case refusal == nil && uniform:
		if refusal, err = p.putParts(ctx, set, odd); err == nil && refusal == nil {
			return "parts of different lengths accepted: with origin.uniform_parts: false, " +
				"the end of each object would be authenticated", nil
		}
		return "parts must have equal lengths", nil
	case refusal == nil:
		return "", nil
	case uniform:
		return "", refusal
	}

	if worse, err := p.putParts(ctx, set, equal); worse != nil || err != nil {
		return "", refusal
	}
	return "", &SettingError{
		fmt.Errorf("%w: the store accepts parts of equal length only", refusal), "set origin.uniform_parts to true",
	}
}

// putParts uploads a multipart object of zeros and removes it. refusal is the
// store's, if it does not complete the upload.
func (p *Probe) putParts(ctx context.Context, set capability.Set, lengths []int) (refusal, err error) {
	key := p.name + "-large"
	up, err := p.createUpload(ctx, key, howFor(set))
	if err != nil {
		return nil, err
	}
	for i, length := range lengths {
		if err := up.send(ctx, i+1, make([]byte, length)); err != nil {
			return nil, fmt.Errorf("part %d of %d bytes: %w", i+1, length, err)
		}
	}
	if _, refusal = up.done(ctx); refusal != nil {
		return refusal, nil
	}
	_, err = p.want(ctx, http.StatusNoContent, request{method: http.MethodDelete, path: p.path(key)})
	return nil, err
}

// part is a part of an upload in S3's documents.
type part struct {
	PartNumber    int
	ETag          string
	ChecksumCRC32 string `xml:",omitempty"` // see stored.PartChecksum
}

// how is how an upload is sent.
type how struct {
	trailer  bool // its parts have a checksum trailer
	declared bool // it is created with the checksum's algorithm
}

// howFor returns how the proxy sends uploads to a store.
func howFor(set capability.Set) how {
	return how{set[capability.Trailer] == capability.Yes, set[capability.PartChecksums] == capability.Yes}
}

// upload is a multipart upload of the probe.
type upload struct {
	probe *Probe
	path  string
	query string
	how   how
}

// createUpload starts an upload.
func (p *Probe) createUpload(ctx context.Context, key string, how how) (*upload, error) {
	up := &upload{probe: p, path: p.path(key), how: how}
	p.made(leftover{path: up.path})
	got, err := p.want(ctx, http.StatusOK, request{
		method: http.MethodPost, path: up.path + "?uploads=", trailer: how.declared,
	})
	if err != nil {
		return nil, err
	}
	var created struct{ UploadId string }
	if err := xml.Unmarshal(got.body, &created); err != nil || created.UploadId == "" {
		return nil, fmt.Errorf("CreateMultipartUpload: %w", got.err())
	}
	up.query = uploadQuery(created.UploadId)
	p.made(leftover{path: up.path, upload: up.query})
	return up, nil
}

func uploadQuery(id string) string { return "uploadId=" + url.QueryEscape(id) }

// send sends a part.
func (u *upload) send(ctx context.Context, number int, body []byte) error {
	_, err := u.probe.want(ctx, http.StatusOK, request{
		method:  http.MethodPut,
		path:    u.path + "?partNumber=" + strconv.Itoa(number) + "&" + u.query,
		body:    body,
		trailer: u.how.trailer,
	})
	return err
}

// list returns the parts as the store lists them.
func (u *upload) list(ctx context.Context) ([]part, error) {
	got, err := u.probe.want(ctx, http.StatusOK, request{method: http.MethodGet, path: u.path + "?" + u.query})
	if err != nil {
		return nil, err
	}
	var doc struct{ Part []part }
	if err := xml.Unmarshal(got.body, &doc); err != nil || len(doc.Part) == 0 {
		return nil, fmt.Errorf("ListParts: %w", got.err())
	}
	return doc.Part, nil
}

// sent is an upload whose parts are in the store.
type sent struct {
	*upload
	parts []part
}

// sendUpload uploads one small part, as the proxy would.
func (p *Probe) sendUpload(ctx context.Context, key string, set capability.Set) (*sent, error) {
	up, err := p.createUpload(ctx, key, howFor(set))
	if err != nil {
		return nil, err
	}
	if err := up.send(ctx, 1, text); err != nil {
		return nil, err
	}
	parts, err := up.list(ctx)
	return &sent{up, parts}, err
}

// completing returns the request that completes the upload. header has the
// conditions.
func (s *sent) completing(header http.Header) request {
	doc, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CompleteMultipartUpload"`
		Part    []part
	}{Part: s.parts})
	if err != nil {
		panic(err) // the document has only numbers and text
	}
	sum := sha256.Sum256(doc)
	header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:])) // instead of the framing of uploads
	return request{method: http.MethodPost, path: s.path + "?" + s.query, header: header, body: doc}
}

func (s *sent) complete(ctx context.Context, header http.Header) (reply, error) {
	return s.probe.do(ctx, s.completing(header))
}

// done completes an upload with the parts that the store lists, as the proxy
// does. It returns the ETag in the answer, which some stores leave out.
func (u *upload) done(ctx context.Context) (etag string, err error) {
	parts, err := u.list(ctx)
	if err != nil {
		return "", err
	}
	got, err := (&sent{u, parts}).complete(ctx, make(http.Header))
	if err != nil {
		return "", err
	}
	var doc struct {
		XMLName xml.Name
		ETag    string
	}
	if err := xml.Unmarshal(got.body, &doc); got.status != http.StatusOK || err != nil ||
		doc.XMLName.Local != "CompleteMultipartUploadResult" {
		return "", fmt.Errorf("CompleteMultipartUpload: %w", got.err())
	}
	return doc.ETag, nil
}

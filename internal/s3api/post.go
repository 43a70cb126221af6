package s3api

import (
	"context"
	"encoding/xml"
	"errors"
	"html"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// postObject stores the file of a form. authenticateForm has already read
// the fields before the file. From here on, it works like PutObject, unless
// the file is long: then its size is not known ahead, and it is stored in
// two parts.
//
// https://docs.aws.amazon.com/AmazonS3/latest/API/RESTObjectPOST.html
func (s *Server) postObject(c *call) error {
	put := s.sealObject
	if c.posted.isLong() {
		put = s.sealInParts
	}

	err := put(c)
	if errors.Is(err, errBehindFile) || errors.Is(err, errBusyForms) { // the file was not read to its end
		c.discard(c.posted)
	}
	if err != nil {
		return err
	}
	return c.answerForm()
}

// sealInParts stores the file of a form as a multipart object. The first
// part is everything but the end of the body; the second part is the rest of
// the file. The upload is completed only after the form, its policy and its
// checksums are verified.
func (s *Server) sealInParts(c *call) error {
	if err := checkMetadata(c.Header, nil); err != nil {
		return err
	}
	if _, err := s.createUpload(c, objectSum{}); err != nil {
		return err
	}

	answer, body, err := s.sealBothParts(c)
	s.uploads.entries.Remove(c.uploadID())
	if err != nil {
		s.abortUpload(c)
		return err
	}

	etag, _, _ := element(body, "ETag")
	answer.Set("Etag", html.UnescapeString(string(etag)))
	c.copyHeader(answer)
	return nil
}

func (s *Server) sealBothParts(c *call) (answer http.Header, body []byte, err error) {
	file, form := c.payload, c.posted
	c.payload = io.LimitReader(file, form.ahead)
	first, err := s.sealFormPart(c, 1, form.ahead)
	if err != nil {
		return nil, nil, err
	}

	if err := form.openTail(); err != nil {
		return nil, nil, err
	}
	if err := form.post.CheckLength(form.size, form.size); err != nil {
		return nil, nil, err
	}
	c.payload = file // its end verifies the checksums
	last, err := s.sealFormPart(c, 2, form.size-form.ahead)
	if err != nil {
		return nil, nil, err
	}
	return s.commit(c, []completionPart{first, last}, make(http.Header))
}

func (s *Server) sealFormPart(c *call, number int, size int64) (completionPart, error) {
	resp, err := s.sealPart(c, number, size)
	if err != nil {
		return completionPart{}, err
	}
	closeBody(resp)
	return completionPart{
		PartNumber: number,
		ETag:       unquote(resp.Header.Get("Etag")),
		stored:     stored.PartChecksumOf(resp.Header),
	}, nil
}

// abortUpload removes the parts of an upload that failed. The client may be
// gone. What cannot be removed is no object, and a lifecycle rule of the
// bucket finds it.
func (s *Server) abortUpload(c *call) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), abortTimeout)
	defer cancel()
	r := c.originRequestTo(http.MethodDelete, c.uploadQuery(make(url.Values)), make(http.Header), nil, 0)
	resp, err := s.send(c, r.WithContext(ctx))
	if err != nil {
		s.Log.Warn(
			"a multipart upload could not be aborted; its parts stay in the store",
			zap.String("request_id", c.id), zap.String("bucket", c.bucket), zap.String("key", c.key),
			zap.String("upload_id", c.upload.stored), zap.Error(err),
		)
		return
	}
	closeBody(resp)
}

const abortTimeout = 10 * time.Second

// errNotForm is returned for a POST to a bucket that is not a form upload.
func errNotForm() error {
	return &Error{
		Code: "PreconditionFailed", Message: messages["PreconditionFailed"],
		Details: [][2]string{
			{"Condition", "Bucket POST must be of the enclosure-type multipart/form-data"},
		}, httpStatus: http.StatusPreconditionFailed,
	}
}

// isForm reports whether the body of a request is a form, which has the
// signature.
func isForm(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "multipart/form-data"
}

// authenticateForm reads a form up to its file, verifies its signature and
// policy, and changes the call: its fields become headers, and the file
// becomes the body.
func (s *Server) authenticateForm(c *call) error {
	if c.ContentLength < 0 {
		return badRequest("MissingContentLength", "You must provide the Content-Length HTTP header.")
	}

	for name := range c.Header { // they are not signed
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && name != "x-amz-user-agent" {
			return notImplemented("The header "+name+" of a form upload", changesMeaning)
		}
	}

	f, err := readForm(c.Body, c.Header.Get("Content-Type"), c.ContentLength)
	if err != nil {
		return err
	}
	c.received(c.ContentLength - f.left)
	known := c.clients

	post, err := s.verifier(known).VerifyPost(f.fields)
	if err != nil {
		return err
	}

	client, ok := known.Client(post.AccessKey)
	if !ok {
		return badRequest("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
	}

	_, most := f.limits()
	c.client, c.auth, c.posted, f.post = client, post.Auth(most), f, post
	if err = c.takeForm(f); err == nil {
		err = s.checkFormKey(c.key)
	}
	if err != nil {
		c.discard(f)
	}
	return err
}

// takeForm checks the fields of a form against its policy, and replaces the
// request's headers with them.
func (c *call) takeForm(f *form) error {
	if err := f.fill(c.bucket); err != nil {
		return err
	}
	c.key = f.fields["key"]
	if err := f.post.Check(f.fields); err != nil {
		return err
	}

	var err error
	c.Header, err = f.header()
	return err
}

// openForm begins to read the file of a form, which becomes the body.
func (s *Server) openForm(c *call) error {
	f := c.posted
	err := f.openFile(s.formBuffers)
	if err == nil {
		least, most := f.limits()
		if f.size < 0 { // it may turn out to be too small
			err = f.post.CheckLength(least, math.MaxInt64)
		} else {
			err = f.post.CheckLength(f.size, f.size)
		}
		c.auth, c.Body = f.post.Auth(most), io.NopCloser(f.file)
	}
	if err != nil {
		c.discard(f)
	}
	return err
}

// checkFormKey checks the key of a form. A policy may restrict keys by
// prefix, so ambiguous keys are refused.
func (s *Server) checkFormKey(key string) error {
	if err := s.checkKey(key, keyname.Write); err != nil {
		return err
	}
	if s.KeyNames.Ambiguous(key) {
		return invalidName("key", key, keyname.ErrDots)
	}
	return nil
}

// maxDiscard limits how much of a refused form is read, in bytes. If the
// response comes while a browser is still sending, the browser does not show
// it.
const maxDiscard = 16 << 20

func (c *call) discard(f *form) {
	_, _ = io.CopyN(io.Discard, &meter{src: f.src, c: c}, maxDiscard) // the form was refused anyway
}

// signing are the fields of the signature, which are not about the object.
var signing = setOf("policy x-amz-signature x-amz-algorithm x-amz-credential x-amz-date")

// fill replaces ${filename} and adds the bucket, as S3 does before it checks
// the policy.
func (f *form) fill(bucket string) error {
	if _, ok := f.fields["key"]; !ok {
		return invalidField(
			"key",
			"Bucket POST must contain a field named 'key'.  If it is specified, please check the order of the fields.",
		)
	}

	filename := f.filename[strings.LastIndexAny(f.filename, `/\`)+1:]
	for name, value := range f.fields {
		if !signing.has(name) {
			f.fields[name] = strings.ReplaceAll(value, "${filename}", filename)
		}
	}

	if said, ok := f.fields["bucket"]; ok && said != bucket {
		return invalidField("bucket", "The form names a different bucket than the URL.")
	}
	f.fields["bucket"] = bucket

	switch key := f.fields["key"]; {
	case key == "":
		return badRequest(
			"UserKeyMustBeSpecified",
			"The bucket POST must contain the specified field name. If it is specified, check the order of the fields.",
		)
	case len(key) > maxKeyLength:
		return badRequest("KeyTooLongError", "Your key is too long")
	case !utf8.ValidString(key):
		return invalidField("key", "The key is not UTF-8.")
	}

	return nil
}

// formHeaders maps fields to headers with different names.
var formHeaders = map[string]string{
	"acl": "X-Amz-Acl", "cache-control": "Cache-Control", "content-disposition": "Content-Disposition",
	"content-encoding": "Content-Encoding", "content-language": "Content-Language",
	"content-md5": "Content-Md5", "content-type": "Content-Type",
	"expires": "Expires",
}

// header returns the headers of a PutObject request that is equal to the
// form. Other fields are ignored; the policy must list them anyway.
func (f *form) header() (http.Header, error) {
	h := make(http.Header)
	for field, value := range f.fields {
		name, ok := formHeaders[field]
		if !ok && strings.HasPrefix(field, "x-amz-") && !signing.has(field) {
			name, ok = field, true
		}

		switch {
		case field == "tagging":
			tags, err := tagsOf(value)
			if err != nil {
				return nil, err
			}
			name, value = "X-Amz-Tagging", tags
		case !ok:
			continue
		}

		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, invalidField(field, "The form field is not valid as a header.")
		}
		if h.Get(name) != "" {
			return nil, invalidField(field, "Two form fields set the same header.")
		}
		h.Set(name, value)
	}

	return h, nil
}

// tagsOf converts the document in the field tagging to the syntax of the
// header.
func tagsOf(text string) (string, error) {
	var doc struct {
		XMLName xml.Name `xml:"Tagging"`
		Tags    []struct {
			Key, Value string
		} `xml:"TagSet>Tag"`
	}
	if err := xml.Unmarshal([]byte(text), &doc); err != nil {
		return "", malformedXML(err)
	}

	tags := make(url.Values)
	for _, tag := range doc.Tags {
		if tag.Key == "" || tags.Has(tag.Key) {
			return "", badRequest("InvalidTag", "Cannot provide multiple Tags with the same key, or one without")
		}
		tags.Set(tag.Key, tag.Value)
	}

	return tags.Encode(), nil
}

// answerForm sends the response that the form asks for.
func (c *call) answerForm() error {
	etag := strings.Join(c.w.Header()["ETag"], "") //nolint:staticcheck // copyHeader uses this spelling
	if to := c.posted.redirect(c.bucket, c.key, etag); to != "" {
		c.w.Header().Set("Location", to)
		c.w.WriteHeader(http.StatusSeeOther)
		return nil
	}
	c.w.Header().Set("Location", c.ownURL())

	switch c.posted.fields["success_action_status"] {
	case "200":
		c.w.WriteHeader(http.StatusOK)
	case "201":
		return c.answerPosted(etag)
	default:
		c.w.WriteHeader(http.StatusNoContent)
	}

	return nil
}

func (c *call) answerPosted(etag string) error {
	body, err := encodeXML(struct {
		XMLName                     xml.Name `xml:"PostResponse"`
		Location, Bucket, Key, ETag string
	}{Location: c.ownURL(), Bucket: c.bucket, Key: c.key, ETag: etag})
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/xml")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	c.w.WriteHeader(http.StatusCreated)
	_, err = c.w.Write(body)
	return err
}

// redirect returns the URL to which the form sends the browser; "" for none
// or an invalid one.
func (f *form) redirect(bucket, key, etag string) string {
	to := f.fields["success_action_redirect"]
	if to == "" {
		to = f.fields["redirect"] // its former name
	}

	u, err := url.Parse(to)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	query := u.Query()
	query.Set("bucket", bucket)
	query.Set("key", key)
	query.Set("etag", etag)

	u.RawQuery = query.Encode()
	return u.String()
}

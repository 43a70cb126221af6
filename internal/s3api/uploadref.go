package s3api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// uploadRef is a reference to a multipart upload.
//
// Replicas know the default key of an upload from the rules, but cannot ask
// the store how an upload was created. If a client asks for another KMS key
// or for an encryption context, or brings its own key, the upload id for the
// client says so. The client sends that id with each part. Other ids are the
// store's own. Ids are not authenticated: what an id says is checked like
// the headers of a PUT.
type uploadRef struct {
	shown  string         // the client's id
	stored string         // the store's id
	wanted keyring.Choice // without the customer key, which the client sends with each part
	sealed []byte         // the wrapped data key under a customer key; nil for none
}

// uploadMark separates the store's id from what the client asked for: base64
// of JSON.
const uploadMark = ".cmek."

// uploadWish is the JSON after the mark.
type uploadWish struct {
	KeyID   string            `json:"key,omitempty"`
	Context map[string]string `json:"context,omitempty"`
	Sealed  []byte            `json:"sealed,omitempty"`
}

// newUploadRef returns the reference for an upload that the store has just
// created. sealed is its first data key.
func newUploadRef(stored string, wanted keyring.Choice, sealed *keyring.DataKey) (uploadRef, error) {
	ref := uploadRef{
		shown:  stored,
		stored: stored,
		wanted: keyring.Choice{KeyID: wanted.KeyID, Context: wanted.Context},
	}

	if wanted.CustomerKey != nil {
		ref.sealed = sealed.Wrapped
	}
	if ref.wanted.KeyID == "" && len(ref.wanted.Context) == 0 && ref.sealed == nil {
		return ref, nil
	}

	wish, err := json.Marshal(uploadWish{ref.wanted.KeyID, ref.wanted.Context, ref.sealed})
	if err != nil {
		return ref, err
	}
	ref.shown += uploadMark + base64.RawURLEncoding.EncodeToString(wish)
	return ref, nil
}

// parseUploadRef parses the id that a client sends. If no proxy can have
// made the id, it returns NoSuchUpload.
func parseUploadRef(shown string) (uploadRef, error) {
	stored, text, marked := strings.Cut(shown, uploadMark)
	ref := uploadRef{shown: shown, stored: stored}
	if err := keyname.CheckID(stored); err != nil || marked && stored == "" {
		return ref, noSuchUpload(shown, err)
	}

	if !marked {
		return ref, nil
	}

	var wish uploadWish
	doc, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err == nil && base64.RawURLEncoding.EncodeToString(doc) != text {
		err = errors.New("it is not in canonical form") // the decoder skips line feeds
	}
	if err == nil {
		err = json.Unmarshal(doc, &wish)
	}

	if err == nil {
		err = crypt.CheckNewContext(wish.Context)
	}

	// If encoding it again gives the same text, it has nothing that is
	// unknown here.
	isEmpty := wish.KeyID == "" && len(wish.Context) == 0 && wish.Sealed == nil // never encoded
	if again, failed := json.Marshal(wish); isEmpty || err != nil || failed != nil || !bytes.Equal(again, doc) {
		return ref, noSuchUpload(shown, err)
	}
	ref.wanted, ref.sealed = keyring.Choice{KeyID: wish.KeyID, Context: wish.Context}, wish.Sealed

	return ref, nil
}

// showUpload replaces the store's upload id in an answer with the client's.
func (c *call) showUpload(doc []byte) []byte {
	return replace(doc, "UploadId", func(string) string { return escapeXML(c.upload.shown) })
}

// takeUpload finds out which upload the call is for. From here on, the query
// has the store's ids.
func (c *call) takeUpload() error {
	for _, name := range []string{"upload-id-marker", "uploadId"} {
		if !c.query.Has(name) {
			continue
		}
		ref, err := parseUploadRef(c.query.Get(name))
		if err != nil {
			return err
		}

		// A store ignores an empty id, and could take AbortMultipartUpload
		// for DeleteObject.
		if ref.shown == "" && name == "uploadId" {
			return noSuchUpload("", nil)
		}
		c.query.Set(name, ref.stored)
		c.upload = ref
	}

	return nil
}

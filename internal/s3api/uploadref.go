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

// uploadRef is a multipart upload as a client names it.
//
// Which key its parts are to be under, every replica knows from the rules, and
// no replica can ask the store for what an upload was created with. So where a
// client has asked for another KMS key, or for an encryption context, or
// brings a key of its own, the upload id that it is given says that too, and
// says it again with each part. All other ids are the store's own. Nothing
// vouches for what an id says: it is no more than what a PUT says in its
// headers, and is judged as that is.
type uploadRef struct {
	shown  string         // the id that the client has
	stored string         // the id that the store has
	wanted keyring.Choice // without a customer's key, which comes with each part
	sealed []byte         // the DEK that was made under a customer's key; nil for none
}

// uploadMark stands between the store's id and what the client has asked for:
// JSON in base64.
const uploadMark = ".cmek."

// uploadWish is what follows the mark.
type uploadWish struct {
	KeyID   string            `json:"key,omitempty"`
	Context map[string]string `json:"context,omitempty"`
	Sealed  []byte            `json:"sealed,omitempty"`
}

// newUploadRef returns an upload that the store has just named. sealed is its
// first DEK.
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

// parseUploadRef reads the id that a client sends. One that no proxy has made
// is that of no upload.
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
		err = errors.New("it is not the one form of what it says") // line feeds are skipped
	}
	if err == nil {
		err = json.Unmarshal(doc, &wish)
	}

	if err == nil {
		err = crypt.CheckNewContext(wish.Context)
	}

	// Written again it is what it was, so there is nothing in it that is not
	// known here.
	isEmpty := wish.KeyID == "" && len(wish.Context) == 0 && wish.Sealed == nil // which no mark says
	if again, failed := json.Marshal(wish); isEmpty || err != nil || failed != nil || !bytes.Equal(again, doc) {
		return ref, noSuchUpload(shown, err)
	}
	ref.wanted, ref.sealed = keyring.Choice{KeyID: wish.KeyID, Context: wish.Context}, wish.Sealed

	return ref, nil
}

// showUpload puts the client's id into an answer of the store's.
func (c *call) showUpload(doc []byte) []byte {
	return replace(doc, "UploadId", func(string) string { return escapeXML(c.upload.shown) })
}

// takeUpload finds out which upload the call is for. From here on the query
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

		// A store takes an empty id for none, and the request for another one:
		// for DeleteObject in place of AbortMultipartUpload.
		if ref.shown == "" && name == "uploadId" {
			return noSuchUpload("", nil)
		}
		c.query.Set(name, ref.stored)
		c.upload = ref
	}

	return nil
}

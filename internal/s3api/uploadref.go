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
// Replicas cannot ask the store how an upload was created. So the upload id
// for the client has the random bytes that bind the parts to each other. If a
// client asks for another KMS key than that of the rules or for an encryption
// context, or brings its own key, the id says so too. The client sends that id
// with each part. An id that a client has taken from a listing may be the
// store's own, and its parts are bound by that id alone. Ids are not
// authenticated: what an id says is checked like the headers of a PUT.
type uploadRef struct {
	shown  string         // the client's id
	stored string         // the store's id
	wanted keyring.Choice // without the customer key, which the client sends with each part
	sealed []byte         // the wrapped data key under a customer key; nil for none

	random     crypt.UploadRandom // zero for parts of version 1
	sealedMeta bool               // the metadata of the upload is sealed
}

// bind sets what binds a part to the upload and to its key.
func (ref *uploadRef) bind(part *crypt.Part, key *keyring.DataKey) {
	part.Upload, part.SealedMeta = crypt.UploadOf(ref.random, ref.stored), ref.sealedMeta
	part.KeyID, part.WrappedDEK = key.KeyID, key.Wrapped
}

// uploadMark separates the store's id from what the client asked for: base64
// of JSON.
const uploadMark = ".cmek."

// uploadWish is the JSON after the mark.
type uploadWish struct {
	KeyID   string            `json:"key,omitempty"`
	Context map[string]string `json:"context,omitempty"`
	Sealed  []byte            `json:"sealed,omitempty"`
	Random  []byte            `json:"random,omitempty"`
	Meta    bool              `json:"meta,omitempty"`
}

// isEmpty reports whether the client's id is the store's.
func (w *uploadWish) isEmpty() bool {
	return w.KeyID == "" && len(w.Context) == 0 && w.Sealed == nil && w.Random == nil
}

// newUploadRef returns the reference for an upload that the store has just
// created. sealed is its first data key.
func newUploadRef(
	stored string, wanted keyring.Choice, sealed *keyring.DataKey, mark *crypt.Mark,
) (uploadRef, error) {
	ref := uploadRef{
		shown:  stored,
		stored: stored,
		wanted: keyring.Choice{KeyID: wanted.KeyID, Context: wanted.Context},
		random: mark.Random, sealedMeta: mark.Meta != nil,
	}

	if wanted.CustomerKey != nil {
		ref.sealed = sealed.Wrapped
	}
	said := uploadWish{KeyID: ref.wanted.KeyID, Context: ref.wanted.Context, Sealed: ref.sealed, Meta: ref.sealedMeta}
	if ref.random != (crypt.UploadRandom{}) {
		said.Random = ref.random[:]
	}
	if said.isEmpty() {
		return ref, nil
	}

	wish, err := json.Marshal(said)
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
	again, failed := json.Marshal(wish)
	if wish.isEmpty() || err != nil || failed != nil || !bytes.Equal(again, doc) || !ref.setRandom(wish) {
		return ref, noSuchUpload(shown, err)
	}
	ref.wanted, ref.sealed = keyring.Choice{KeyID: wish.KeyID, Context: wish.Context}, wish.Sealed

	return ref, nil
}

// setRandom takes the random bytes. It reports whether a proxy can have sent
// them.
func (ref *uploadRef) setRandom(w uploadWish) bool {
	if w.Random == nil {
		return !w.Meta
	}
	if len(w.Random) != len(ref.random) {
		return false
	}
	ref.random, ref.sealedMeta = crypt.UploadRandom(w.Random), w.Meta
	return ref.random != (crypt.UploadRandom{})
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

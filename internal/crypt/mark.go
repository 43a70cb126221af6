package crypt

import (
	"cmp"
	"encoding/base64"
	"strconv"
)

// Mark is the encryption metadata of a multipart object. It is fixed when
// the upload is created, and is authenticated only if it has sealed metadata.
type Mark struct {
	Version Version
	KeyID   string // id of the KMS key that was configured when the upload was created
	// Meta is the sealed metadata; see SealMetadata. The next two fields
	// exist only with it.
	Meta       []byte
	WrappedDEK []byte
	Random     UploadRandom // as in the parts; see Upload
	mac        authCode
}

// typeMultipart is the value of the entry that distinguishes a Mark from an
// Envelope.
const typeMultipart = "multipart"

// Sign sets the MAC of a mark with sealed metadata.
func (m *Mark) Sign(dek []byte, obj Object) error {
	return m.mac.sign(dek, m.macFields(obj))
}

// Verify returns ErrAuth unless the MAC of a mark with sealed metadata is
// correct for dek and obj. Before it has returned nil, only KeyID and
// WrappedDEK may be used, and only to get the DEK.
func (m *Mark) Verify(dek []byte, obj Object) error {
	return m.mac.verify(dek, m.macFields(obj), "the MAC of the sealed metadata")
}

func (m *Mark) macFields(obj Object) [][]byte {
	return append(commonFields(V2, m.KeyID, m.WrappedDEK, nil, nil, nil, "upload", obj), m.Meta, m.Random[:])
}

// Metadata returns the metadata entries to store, or ErrEnvelope.
func (m *Mark) Metadata() (map[string]string, error) {
	out := map[string]string{
		nameVersion: cmp.Or(m.Version, Newest).text(),
		nameSuite:   strconv.Itoa(int(Suite)),
		nameType:    typeMultipart,
		nameKey:     m.KeyID,
	}
	if len(m.Meta) > 0 {
		b64 := base64.StdEncoding.EncodeToString
		out[nameMeta], out[nameDEK] = b64(m.Meta), b64(m.WrappedDEK)
		out[nameUpload], out[nameMAC] = b64(m.Random[:]), b64(m.mac[:])
	}

	if _, err := ParseMark(out); err != nil {
		return nil, err
	}
	return out, nil
}

// ParseMark reads the Mark from an object's metadata; see ParseEnvelope.
func ParseMark(metadata map[string]string) (*Mark, error) {
	p, err := newParser(metadata)
	if err != nil {
		return nil, err
	}
	if kind := p.take(nameType); kind != typeMultipart {
		p.fail("%s is %.40q", nameType, kind)
	}

	m := &Mark{Version: p.version, KeyID: p.keyID()}
	if p.version >= V2 && p.has(nameMeta) {
		m.Meta = p.base64(nameMeta, minMeta, maxMeta)
		m.WrappedDEK = p.base64(nameDEK, 1, maxWrappedDEK)
		copy(m.Random[:], p.base64(nameUpload, len(m.Random), len(m.Random)))
		copy(m.mac[:], p.base64(nameMAC, macSize, macSize))
		if m.Random == (UploadRandom{}) {
			p.fail("%s is zero", nameUpload)
		}
	}

	if err := p.end(); err != nil {
		return nil, err
	}
	return m, nil
}

package crypt

import (
	"crypto/sha256"
	"fmt"
)

// UploadRandom is what the writer that creates an upload draws, to bind its
// parts to each other.
type UploadRandom [16]byte

// Upload binds a part to the other parts of its upload. A part of version 1
// has no random bytes, only the store's upload id: the client has taken the
// id from a listing, which does not show what the writer has added to it.
type Upload struct {
	Random UploadRandom // zero in version 1
	hash   [sha256.Size]byte
	half   bool // only the first half of hash is known: of a part of version 2
}

const halfHash = sha256.Size / 2

// UploadOf returns the Upload of new parts. random is zero for parts of
// version 1.
func UploadOf(random UploadRandom, uploadID string) Upload {
	u := Upload{Random: random, hash: sha256.Sum256([]byte(uploadID))}
	if random != (UploadRandom{}) {
		u.half = true
		clear(u.hash[halfHash:])
	}
	return u
}

// Version returns the version of the part.
func (p *Part) Version() Version { return p.Upload.version() }

// version returns the version of the part with this upload.
func (u *Upload) version() Version {
	if u.Random == (UploadRandom{}) {
		return V1
	}
	return V2
}

// bytes returns the field of the part header.
func (u *Upload) bytes() []byte {
	if u.version() == V1 {
		return u.hash[:]
	}
	return append(u.Random[:], u.hash[:halfHash]...)
}

func parseUpload(v Version, b []byte) (Upload, error) {
	if v == V1 {
		return Upload{hash: [sha256.Size]byte(b)}, nil
	}
	u := Upload{Random: UploadRandom(b), half: true}
	copy(u.hash[:], b[len(u.Random):])
	if u.Random == (UploadRandom{}) {
		return u, fmt.Errorf("%w: part header: the random bytes of the upload are zero", ErrEnvelope)
	}
	return u, nil
}

// Join returns what is known of an upload from two of its parts. ok is false
// if they are of different uploads.
func (u Upload) Join(other Upload) (both Upload, ok bool) {
	none := UploadRandom{}
	n := sha256.Size
	if u.half || other.half {
		n = halfHash
	}
	if string(u.hash[:n]) != string(other.hash[:n]) ||
		u.Random != other.Random && u.Random != none && other.Random != none {
		return u, false
	}

	if u.half {
		u.hash, u.half = other.hash, other.half
	}
	if u.Random == none {
		u.Random = other.Random
	}
	return u, true
}

// IsOf reports whether the upload can have this id in the store.
func (u Upload) IsOf(uploadID string) bool {
	_, ok := u.Join(UploadOf(UploadRandom{}, uploadID))
	return ok
}

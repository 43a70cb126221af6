package crypt

import (
	"fmt"
	"io"
)

// ChecksumID is the number of a checksum algorithm in the format.
type ChecksumID byte

// The algorithms of S3's x-amz-checksum-* headers.
const (
	CRC32     ChecksumID = 1
	CRC32C    ChecksumID = 2
	CRC64NVME ChecksumID = 3
	SHA1      ChecksumID = 4
	SHA256    ChecksumID = 5
	SHA512    ChecksumID = 6
	MD5       ChecksumID = 7
	XXHash64  ChecksumID = 8
	XXHash3   ChecksumID = 9
	XXHash128 ChecksumID = 10
)

// Size returns the length of the digest in bytes, or 0 for an unknown id.
func (id ChecksumID) Size() int {
	if int(id) < len(checksumSizes) {
		return checksumSizes[id]
	}
	return 0
}

var checksumSizes = [...]int{
	CRC32: 4, CRC32C: 4, CRC64NVME: 8, SHA1: 20, SHA256: 32, SHA512: 64, MD5: 16, XXHash64: 8, XXHash3: 8,
	XXHash128: 16,
}

// SealChecksums encrypts digests of the plaintext, so that the store cannot
// use them to confirm guesses. It returns nil if there are no digests.
func SealChecksums(digests map[ChecksumID][]byte, dek []byte, random io.Reader) ([]byte, error) {
	if len(digests) == 0 {
		return nil, nil
	}

	var records []byte
	for id := CRC32; id <= XXHash128; id++ {
		if digest, ok := digests[id]; ok {
			if len(digest) != id.Size() {
				return nil, fmt.Errorf("%w: checksum %d of %d bytes", ErrSize, id, len(digest))
			}
			records = append(append(records, byte(id)), digest...)
		}
	}

	aead, err := derivedAEAD(dek, nil, infoChecksum)
	if err != nil {
		return nil, err
	}
	defer Wipe(aead)

	nonce := make([]byte, nonceSize, nonceSize+len(records)+TagSize)
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("crypt: drawing a nonce: %w", err)
	}

	return aead.Seal(nonce, nonce, records, nil), nil
}

// OpenChecksums is the inverse of SealChecksums. It returns ErrAuth or
// ErrEnvelope.
func OpenChecksums(sealed, dek []byte) (map[ChecksumID][]byte, error) {
	if len(sealed) == 0 {
		return nil, nil
	}

	aead, err := derivedAEAD(dek, nil, infoChecksum)
	if err != nil {
		return nil, err
	}
	defer Wipe(aead)

	if len(sealed) < nonceSize+TagSize {
		return nil, fmt.Errorf("%w: %s is too short", ErrEnvelope, nameSum)
	}

	records, err := aead.Open(nil, sealed[:nonceSize], sealed[nonceSize:], nil)
	if err != nil {
		return nil, fmt.Errorf("%w: the sealed checksums", ErrAuth)
	}

	digests := make(map[ChecksumID][]byte)
	var previous ChecksumID
	for len(records) > 0 {
		id := ChecksumID(records[0])
		n := id.Size()
		if n == 0 || id <= previous || len(records) < 1+n {
			return nil, fmt.Errorf("%w: the records of %s", ErrEnvelope, nameSum)
		}

		digests[id] = records[1 : 1+n]
		records, previous = records[1+n:], id
	}

	return digests, nil
}

package s3api

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// maxCopy is S3's limit for the source of a copy, in bytes.
const maxCopy = 5 << 30

// resealCopy reads the source, and seals it under a new data key, as a single-PUT object.
func (s *Server) resealCopy(c *call, q stored.Request, choice keyring.Choice, wanted *checksum.Algorithm) error {
	c.reseals = true
	source, err := c.reader.Get(c.Context(), q)
	if err != nil {
		return err
	}
	defer source.Close()
	switch {
	case source.Length > maxCopy:
		return badRequest("InvalidRequest", fmt.Sprintf("The specified copy source is larger than the maximum allowable size for a copy source: %d", maxCopy))
	case source.Length > maxObject:
		return badRequest("InvalidRequest", fmt.Sprintf("The specified copy source is larger than what the proxy can store as one object that was not uploaded in parts: %d. Copy it in parts.", maxObject))
	}
	lease, err := s.Keys.Create(c.Context(), c.object(), c.client.Name, choice)
	if err != nil {
		return err
	}
	defer lease.Release()
	c.watch(lease.Lease)
	lease.Wrote(source.Length)
	sums, err := copiedSums(c, source)
	if err != nil {
		return err
	}
	c.setSealedHeaders(lease)
	stop := s.keepAlive(c)
	var answer http.Header
	if wanted == nil {
		answer, err = s.sealCopy(c, q, source, lease, sums)
	} else {
		source.Close() // it would wait in the meantime, and the store with it
		answer, sums, err = s.sealCopyWith(c, q, lease, wanted, sums)
	}
	if errors.Is(err, errTransfer) && (wanted == nil || sums != nil) { // nothing was stored, and the source is still there
		source.Close()
		answer, err = s.sealCopyAgain(c, q, lease, sums)
	}
	stop()
	if err != nil {
		return err
	}
	return s.answerCopied(c, answer, copyResult{etag: answer.Get("Etag"), sums: sums, kind: fullObject})
}

// sealCopyWith is sealCopy of an object that is to have a checksum of this algorithm. It returns the checksum too.
func (s *Server) sealCopyWith(c *call, q stored.Request, lease *keyring.DataKey, a *checksum.Algorithm, sums map[crypt.ChecksumID][]byte) (http.Header, map[crypt.ChecksumID][]byte, error) {
	sums, err := s.wantedSums(c, q, a, sums)
	if err != nil {
		return nil, nil, err
	}
	answer, err := s.sealCopyAgain(c, q, lease, sums)
	return answer, sums, err
}

// sealCopyAgain is sealCopy of a source that is read once more.
func (s *Server) sealCopyAgain(c *call, q stored.Request, lease *keyring.DataKey, sums map[crypt.ChecksumID][]byte) (http.Header, error) {
	source, err := c.reader.Get(c.Context(), q)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	return s.sealCopy(c, q, source, lease, sums)
}

// sealCopy encrypts the source on its way back to the store, and returns the header of the store's answer.
func (s *Server) sealCopy(c *call, q stored.Request, source *stored.Object, lease *keyring.DataKey, sums map[crypt.ChecksumID][]byte) (http.Header, error) {
	sealer, err := crypt.NewSealer(source.Reader(c.Context()), source.Length, lease.DEK(), s.Random)
	if err != nil {
		return nil, err
	}
	header, err := s.resealedHeader(c, q, source, lease, sealer.Header(), sums)
	if err != nil {
		return nil, errors.Join(err, sealer.Close())
	}
	resp, err := s.sendSealed(c, header, &upload{sealer: sealer, c: c, lease: lease.Lease, size: crypt.StoredSize(source.Length)})
	if err != nil {
		return nil, err
	}
	closeBody(resp)
	return resp.Header, nil
}

func (s *Server) resealedHeader(c *call, q stored.Request, source *stored.Object, lease *keyring.DataKey, h crypt.Header, sums map[crypt.ChecksumID][]byte) (http.Header, error) {
	envelope := crypt.Envelope{Header: h, Size: source.Length}
	if err := s.sign(c, &envelope, lease, sums); err != nil {
		return nil, err
	}
	header, err := c.copiedHeader(source.Header, &envelope)
	if err != nil || c.replaces("Tagging") {
		return header, err
	}
	tags, err := c.reader.Tags(c.Context(), q)
	if tags != "" {
		header.Set("X-Amz-Tagging", tags)
	}
	return header, err
}

// copiedSums are the checksums of the source that its copy can have.
func copiedSums(c *call, source *stored.Object) (map[crypt.ChecksumID][]byte, error) {
	if source.Plaintext {
		return nil, nil
	}
	sum, err := source.Checksum(c.Context())
	if err != nil || sum.Type != crypt.FullObject { // one of parts means nothing once there are none
		return nil, err
	}
	return sum.Digests, nil
}

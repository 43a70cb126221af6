package s3api

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// maxCopy is S3's limit for the size of a copy source, in bytes.
const maxCopy = 5 << 30

// resealCopy reads the source and seals it under a new data key, as a
// single-PUT object.
func (s *Server) resealCopy(c *objectCopy) error {
	if err := s.checkAnnotations(c); err != nil {
		return err
	}
	c.reseals = true
	source, err := c.readSource(nil)
	if err != nil {
		return err
	}
	defer source.Close()

	switch {
	case source.Length > maxCopy:
		return sourceTooLarge(maxCopy)
	case source.Length > maxObject:
		return badRequest(
			"InvalidRequest",
			fmt.Sprintf("The specified copy source is larger than the proxy can store "+
				"with one PUT: %d. Copy it with a multipart upload.", maxObject),
		)
	}

	lease, err := c.keys.Create(c.Context(), c.object(), c.client.Name, c.choice)
	if err != nil {
		return err
	}
	defer lease.Release()
	c.watch(lease.Lease)
	lease.Wrote(source.Length)

	sums, err := copiedSums(c.call, source)
	if err != nil {
		return err
	}
	c.setSealedHeaders(lease)

	stop := s.keepAlive(c.call)
	var answer http.Header
	if c.wanted == nil {
		answer, err = s.sealCopy(c, source, lease, sums)
	} else {
		source.Close() // while it waits, it would hold a connection to the store
		answer, sums, err = s.sealCopyWith(c, lease, sums)
	}

	// Nothing was stored, and the source can be read again.
	if errors.Is(err, errTransfer) && (c.wanted == nil || sums != nil) {
		source.Close()
		answer, err = s.sealCopyAgain(c, lease, sums)
	}
	stop()

	if err != nil {
		return err
	}
	return c.answerCopied(answer, copyResult{etag: answer.Get("Etag"), sums: sums, kind: fullObject})
}

// sealCopyWith is sealCopy for a copy that needs the wanted checksum. It
// also returns that checksum.
func (s *Server) sealCopyWith(c *objectCopy, lease *keyring.DataKey, sums digests) (http.Header, digests, error) {
	sums, err := wantedSums(c, sums)
	if err != nil {
		return nil, nil, err
	}
	answer, err := s.sealCopyAgain(c, lease, sums)
	return answer, sums, err
}

// sealCopyAgain is sealCopy with a new read of the source.
func (s *Server) sealCopyAgain(c *objectCopy, lease *keyring.DataKey, sums digests) (http.Header, error) {
	source, err := c.readSource(nil)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	return s.sealCopy(c, source, lease, sums)
}

// sealCopy encrypts the source and sends it to the store. It returns the
// headers of the store's answer.
func (s *Server) sealCopy(
	c *objectCopy, source *stored.Object, lease *keyring.DataKey, sums digests,
) (http.Header, error) {
	sealer, err := crypt.NewSealer(source.Reader(c.Context()), source.Length, lease.DEK(), s.Random)
	if err != nil {
		return nil, err
	}

	header, err := s.resealedHeader(c, source, lease, sealer.Header(), sums)
	if err != nil {
		return nil, errors.Join(err, sealer.Close())
	}

	up := &upload{sealer: sealer, c: c.call, lease: lease.Lease, size: crypt.StoredSize(source.Length)}
	resp, err := s.sendSealed(c.call, nil, header, up)
	if err != nil {
		return nil, c.writeError(err)
	}
	closeBody(resp)
	return resp.Header, nil
}

// resealedHeader returns the headers of the copy, with its envelope and the
// source's tags.
func (s *Server) resealedHeader(
	c *objectCopy, source *stored.Object, lease *keyring.DataKey, h crypt.Header, sums digests,
) (http.Header, error) {
	envelope := crypt.Envelope{Header: h, Size: source.Length}
	if err := s.setKey(&envelope, lease, sums); err != nil {
		return nil, err
	}
	header, err := s.copiedHeader(c, source.Header, &envelope, lease.DEK())
	if err != nil {
		return nil, err
	}
	header.Del(annotationDirective) // PutObject does not have it
	if c.hasCondition() && c.flaw == nil {
		if err := c.checkPutConditions(header); err != nil {
			return nil, err
		}
	}
	if c.replaces("Tagging") {
		return header, nil
	}
	return header, s.carryTags(c, header)
}

// carryTags adds the source's tags to header. They are not part of the answer
// from which the body comes, so they may be those of another object.
func (s *Server) carryTags(c *objectCopy, header http.Header) error {
	tags, err := c.reader.Tags(c.Context(), c.source)
	if tags == "" {
		return err
	}
	header.Set("X-Amz-Tagging", tags)
	_, err = c.reader.Look(c.Context(), c.source)
	return c.sourceError(err)
}

// copiedSums returns the checksums of the source that also fit its copy.
func copiedSums(c *call, source *stored.Object) (digests, error) {
	if source.Plaintext {
		return nil, nil
	}
	sum, err := source.Checksum(c.Context())
	if err != nil || sum.Type != crypt.FullObject { // a checksum of parts does not fit an object without parts
		return nil, err
	}
	return sum.Digests, nil
}

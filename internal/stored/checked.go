package stored

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Checked is a body for the store that verifies itself. It returns stored
// bytes only after their segment was verified and decrypted. It returns
// io.EOF only if all segments were verified.
type Checked struct {
	// Seen, if not nil, is called with the plaintext of the bytes that are
	// returned next. If it returns an error, they are not returned.
	Seen func(text []byte) error
	// Err is why reading failed; a transport may not pass it on.
	Err error

	ctx    context.Context //nolint:containedctx // of the one request that reads it
	lease  Lease
	opener *crypt.Opener
	next   func() ([]byte, error)
	passed bytes.Buffer // verified bytes
}

// CheckBody checks the body of a single-PUT object with size bytes of
// plaintext.
func CheckBody(ctx context.Context, src io.Reader, size int64, h crypt.Header, lease Lease) (*Checked, error) {
	c := &Checked{ctx: ctx, lease: lease}
	opener, err := crypt.NewOpener(io.TeeReader(src, &c.passed), crypt.Whole(size), lease.DEK(), h)
	if err != nil {
		return nil, err
	}
	c.opener, c.next = opener, opener.Next
	return c, nil
}

// CheckPart checks a part without a record.
func CheckPart(ctx context.Context, src io.Reader, obj crypt.Object, lease Lease) (*Checked, error) {
	c := &Checked{ctx: ctx, lease: lease}
	src = io.TeeReader(src, &c.passed)
	prefix := make([]byte, crypt.PartPrefixSize)
	if _, err := io.ReadFull(src, prefix); err != nil {
		return nil, err
	}

	part, err := crypt.ParsePart(prefix)
	if err != nil {
		return nil, err
	}
	if err := part.Verify(lease.DEK(), obj); err != nil {
		return nil, err
	}

	window := part.Whole()
	stream := io.LimitReader(io.MultiReader(bytes.NewReader(prefix[crypt.PartHeaderSize:]), src), window.End)
	if c.opener, err = crypt.NewOpener(stream, window, lease.DEK(), part.Header); err != nil {
		return nil, err
	}

	fill := part.Size + crypt.PartOverhead - crypt.PartHeaderSize - window.End
	c.next = func() ([]byte, error) {
		text, err := c.opener.Next()
		if err == io.EOF && fill >= 0 { //nolint:errorlint // Next returns io.EOF unwrapped
			n := fill
			fill = -1
			return nil, expectZeros(src, n)
		}
		return text, err
	}

	return c, nil
}

// expectZeros reads n zero bytes and the end.
func expectZeros(src io.Reader, n int64) error {
	fill := make([]byte, n+1)
	got, err := crypt.ReadFull(src, fill)
	if err != nil && err != io.EOF && err != crypt.ErrTruncated { //nolint:errorlint // wrapped ones are from the source
		return err
	}
	if int64(got) != n || !bytes.Equal(fill[:n], make([]byte, n)) {
		return fmt.Errorf("%w: the fill of a part", crypt.ErrAuth)
	}
	return nil
}

func (c *Checked) Read(p []byte) (int, error) {
	for c.passed.Len() == 0 || c.Err != nil {
		if c.Err == nil {
			c.Err = c.more()
		}
		if c.Err != nil {
			return 0, c.Err
		}
		if c.passed.Len() == 0 {
			return 0, io.EOF
		}
	}
	return c.passed.Read(p)
}

// more verifies the next bytes. At the end, there are none.
func (c *Checked) more() error {
	text, err := c.next()
	if err == io.EOF { //nolint:errorlint // Next returns io.EOF unwrapped
		return nil
	}
	if err == nil {
		err = c.lease.Check(c.ctx)
	}
	if err == nil && c.Seen != nil {
		err = c.Seen(text)
	}
	return err
}

// Close releases the buffers.
func (c *Checked) Close() { c.opener.Close() }

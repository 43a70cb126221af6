package crypt

import "io"

// ReadFull fills b from src like io.ReadFull, but distinguishes the end of
// the source from its failure. It returns io.EOF if src ends before the
// first byte, and ErrTruncated if src ends within b.
//
// Any other error is src's own. That includes io.ErrUnexpectedEOF, which a
// source returns when its connection breaks: that says nothing about the
// object.
func ReadFull(src io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var more int
		more, err = src.Read(b[n:])
		n += more
	}

	switch {
	case n == len(b):
		return n, nil
	case err == io.EOF && n > 0: // io.Reader requires a bare io.EOF
		return n, ErrTruncated
	default:
		return n, err
	}
}

// sourceEnded reports whether an error of ReadFull means that the source
// ended.
func sourceEnded(err error) bool {
	return err == io.EOF || err == ErrTruncated //nolint:errorlint // a wrapped one is the source's own
}

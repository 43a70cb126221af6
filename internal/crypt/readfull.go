package crypt

import "io"

// ReadFull fills b from src, as io.ReadFull does, but tells a source that has
// ended from one that has failed. It returns io.EOF if src ended before the
// first byte, and ErrTruncated if src ended within b.
//
// Every other error is that of src. This includes io.ErrUnexpectedEOF: a source
// returns it when the connection that it reads from breaks, which says nothing
// of the object.
func ReadFull(src io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var more int
		more, err = src.Read(b[n:])
		n += more
	}

	switch {
	case n == len(b):
		return n, nil
	case err == io.EOF && n > 0: // bare, as every io.Reader must say it
		return n, ErrTruncated
	default:
		return n, err
	}
}

// sourceEnded reports whether an error of ReadFull says that the source has
// ended.
func sourceEnded(err error) bool {
	return err == io.EOF || err == ErrTruncated //nolint:errorlint // bare: an error that wraps them is the source's
}

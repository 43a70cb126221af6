package crypt

import (
	"fmt"
	"io"
)

// Opener decrypts a window of a body. It returns batches of verified
// segments. Between calls of Next it holds one buffer: the plaintext that the
// caller may be slow to pass on.
type Opener struct {
	src         io.Reader
	stream      *stream
	header      Header
	window      Window
	nextSegment int64   // index of the segment to open next
	lastSegment int64   // index of the window's last segment
	skip        int     // plaintext bytes to drop before the first one wanted
	textLeft    int64   // plaintext bytes still wanted
	buffer      *buffer // stored bytes; nil between calls unless they are opened in place
	plain       *plain  // text, unless it is in the buffer
	closed      bool
}

// NewOpener returns an Opener for the window w. src must return the stored
// bytes from w.Start to w.End, and h must be the header from the envelope.
func NewOpener(src io.Reader, w Window, dek []byte, h Header) (*Opener, error) {
	stream, err := newStream(dek, &h, w.size, w.segmentSize)
	if err != nil {
		return nil, err
	}

	return &Opener{
		src: src, stream: stream, header: h, window: w,
		nextSegment: w.first, lastSegment: (w.End - 1) / w.segmentSize.storedSegment(),
		skip: w.skip(), textLeft: w.length,
	}, nil
}

// Next returns the next plaintext bytes, all of them verified: at most 256
// KiB or one segment, valid until the next call. At the end it checks that
// src has ended too, and returns io.EOF. Any other error is ErrAuth,
// ErrTruncated, ErrTrailing or src's own; after it, the object must not be
// used any further.
func (o *Opener) Next() ([]byte, error) {
	if o.closed || o.done() {
		return nil, io.EOF
	}

	o.free()
	o.buffer = newBuffer(o.window.segmentSize, o.window.End-o.window.Start)
	segment := o.window.segmentSize.storedSegment()
	length := min(o.window.End-o.nextSegment*segment, segment*int64(o.buffer.batch(o.window.segmentSize)))
	stored := o.buffer.bytes[:length]
	if _, err := ReadFull(o.src, stored); err != nil {
		if sourceEnded(err) {
			return nil, fmt.Errorf("%w in segment %d of %d", ErrTruncated, o.nextSegment, o.stream.last+1)
		}
		return nil, err
	}

	text, err := o.openBatch(stored)
	if err != nil {
		return nil, err
	}
	if o.done() {
		if err := expectEOF(o.src, ErrTrailing); err != nil {
			return nil, err
		}
	}

	return o.trim(text), nil
}

// Close returns the buffers to their pools. Neither the Opener nor the
// bytes that Next returned may be used afterwards.
func (o *Opener) Close() {
	if !o.closed {
		o.free()
		o.stream.wipe()
		o.closed = true
	}
}

// free returns the buffers to their pools.
func (o *Opener) free() {
	if o.plain != nil {
		plainPool.Put(o.plain)
	}
	if o.buffer != nil {
		o.buffer.free()
	}
	o.buffer, o.plain = nil, nil
}

func (o *Opener) done() bool { return o.nextSegment > o.lastSegment }

func (o *Opener) openBatch(stored []byte) ([]byte, error) {
	text := stored[:0] // in place, if it is one segment
	if int64(len(stored)) > o.window.segmentSize.storedSegment() {
		o.plain = plainPool.Get().(*plain)
		text = o.plain[:0]
	}

	for len(stored) > 0 {
		segment := stored[:min(len(stored), int(o.window.segmentSize.storedSegment()))]
		stored = stored[len(segment):]

		if o.nextSegment == 0 {
			if Header(segment[:HeaderSize]) != o.header {
				return nil, fmt.Errorf("%w: the header differs from the envelope's", ErrAuth)
			}

			segment = segment[HeaderSize:]
			if o.plain == nil {
				text = segment[:0]
			}
		}

		var err error
		if text, err = o.stream.aead.Open(text, o.stream.nonceOf(o.nextSegment), segment, nil); err != nil {
			return nil, fmt.Errorf("%w in segment %d of %d", ErrAuth, o.nextSegment, o.stream.last+1)
		}

		o.nextSegment++
	}

	if o.plain != nil {
		o.buffer.free()
		o.buffer = nil
	}
	return text, nil
}

// trim cuts off the bytes of the window before the first byte wanted and
// after the last one.
func (o *Opener) trim(text []byte) []byte {
	text = text[o.skip:]
	o.skip = 0
	text = text[:min(int64(len(text)), o.textLeft)]
	o.textLeft -= int64(len(text))
	return text
}

package crypt

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// plain holds the plaintext of one batch.
type plain [batch * SegmentSize]byte

var plainPool = sync.Pool{New: func() any { return new(plain) }}

// Opener decrypts a window of a body, a batch of verified segments at a time.
type Opener struct {
	src     io.Reader
	stream  *stream
	header  Header
	window  Window
	next    int64 // index of the segment to open next
	last    int64 // last segment of the window
	skip    int   // plaintext bytes to drop before the next one wanted
	remains int64 // plaintext bytes still wanted
	slots   *slots
	plain   *plain
}

// NewOpener returns an Opener of the window w, whose stored bytes src yields from w.Start to w.End, under dek and the
// header h of the envelope.
func NewOpener(src io.Reader, w Window, dek []byte, h Header) (*Opener, error) {
	stream, err := newStream(dek, &h, w.size)
	if err != nil {
		return nil, err
	}
	return &Opener{
		src: src, stream: stream, header: h, window: w,
		next: w.first, last: (w.End - 1) / StoredSegmentSize,
		skip: w.skip(), remains: w.length,
		slots: slotPool.Get().(*slots), plain: plainPool.Get().(*plain),
	}, nil
}

// Next returns the next plaintext bytes, 256 KiB at most, every one of them verified; they are valid until the next
// call. At the end it returns io.EOF, after making sure that src ends there too. On any other error, which is ErrAuth,
// ErrTruncated, ErrTrailing or src's own, no further byte may be used.
func (o *Opener) Next() ([]byte, error) {
	if o.plain == nil || o.done() {
		return nil, io.EOF
	}
	length := int(min(o.window.End-o.next*StoredSegmentSize, int64(len(o.slots))))
	stored := o.slots[:length]
	if _, err := io.ReadFull(o.src, stored); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w in segment %d of %d", ErrTruncated, o.next, o.stream.last+1)
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

// Close gives the buffers back. The Opener, and what Next returned, must not be used after it.
func (o *Opener) Close() {
	if o.plain != nil {
		slotPool.Put(o.slots)
		plainPool.Put(o.plain)
		o.slots, o.plain = nil, nil
	}
}

func (o *Opener) done() bool { return o.next > o.last }

func (o *Opener) openBatch(stored []byte) ([]byte, error) {
	text := o.plain[:0]
	for len(stored) > 0 {
		segment := stored[:min(len(stored), StoredSegmentSize)]
		stored = stored[len(segment):]
		if o.next == 0 {
			if Header(segment[:HeaderSize]) != o.header {
				return nil, fmt.Errorf("%w: the header is not the envelope's", ErrAuth)
			}
			segment = segment[HeaderSize:]
		}
		var err error
		if text, err = o.stream.aead.Open(text, o.stream.at(o.next), segment, nil); err != nil {
			return nil, fmt.Errorf("%w in segment %d of %d", ErrAuth, o.next, o.stream.last+1)
		}
		o.next++
	}
	return text, nil
}

// trim cuts away what a window has before the first byte wanted and behind the last.
func (o *Opener) trim(text []byte) []byte {
	text = text[o.skip:]
	o.skip = 0
	text = text[:min(int64(len(text)), o.remains)]
	o.remains -= int64(len(text))
	return text
}

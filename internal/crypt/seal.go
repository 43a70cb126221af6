package crypt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Sealer encrypts a plaintext of known size as it is read. It does not change
// the text of a bytes.Buffer.
//
// The last segment is sealed only after the source has returned io.EOF. If
// the source verifies its data and fails instead of returning io.EOF, the
// body never becomes complete.
//
// Close may be called during a Read, as an HTTP transport does. No other
// calls may overlap.
type Sealer struct {
	mu           sync.Mutex // held by Read
	src          io.Reader
	stream       *stream
	streamHeader Header
	textLeft     int64 // plaintext not yet read
	nextSegment  int64 // index of the segment to seal next
	buffer       *buffer
	out          []byte // sealed, not yet returned by Read
	err          error
}

// NewSealer returns a Sealer for the size bytes of src. The salt and the
// nonce prefix are read from random.
func NewSealer(src io.Reader, size int64, dek []byte, random io.Reader) (*Sealer, error) {
	return newStreamSealer(src, size, defaultSegment, dek, random)
}

func newStreamSealer(
	src io.Reader, size int64, segmentSize segmentBytes, dek []byte, random io.Reader,
) (*Sealer, error) {
	s := &Sealer{src: src, textLeft: size}
	s.streamHeader[0] = HeaderSize

	if _, err := io.ReadFull(random, s.streamHeader[1:]); err != nil {
		return nil, fmt.Errorf("crypt: drawing a salt: %w", err)
	}

	var err error
	if s.stream, err = newStream(dek, &s.streamHeader, size, segmentSize); err != nil {
		return nil, err
	}

	s.buffer = newBuffer(segmentSize, segmentSize.storedSize(size))
	return s, nil
}

// Header returns the header of the body, which the envelope needs.
func (s *Sealer) Header() Header { return s.streamHeader }

// Read returns the stored body: StoredSize(size) bytes, then io.EOF. It
// fails with io.ErrUnexpectedEOF if the source is shorter than size, with
// ErrTrailing if it is longer, and otherwise with the source's error.
func (s *Sealer) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()

	if len(s.out) == 0 && s.err == nil {
		s.err = s.sealBatch()
	}
	if len(s.out) == 0 {
		return 0, s.err
	}

	n := copy(p, s.out)
	s.out = s.out[n:]
	return n, nil
}

// Close returns the buffer to its pool. If a Read is using the buffer, the
// garbage collector frees it instead. Later Reads fail with
// io.ErrClosedPipe.
func (s *Sealer) Close() error {
	if s.mu.TryLock() {
		defer s.mu.Unlock()
		if s.buffer != nil {
			s.buffer.free()
			s.stream.wipe()
			s.buffer, s.out, s.err = nil, nil, io.ErrClosedPipe
		}
	}

	return nil
}

// sealBatch seals the next batch of segments. It returns an error
// only if there is nothing to return to the reader.
func (s *Sealer) sealBatch() error {
	if s.nextSegment > s.stream.last {
		return io.EOF
	}

	end := 0
	segmentSize := s.stream.segmentSize
	for range s.buffer.batch(segmentSize) {
		slot := s.buffer.bytes[end:min(end+int(segmentSize.storedSegment()), len(s.buffer.bytes))]
		used := 0

		if s.nextSegment == 0 {
			used = copy(slot, s.streamHeader[:])
		}

		n := int(min(s.textLeft, int64(segmentSize)-int64(used)))
		text, err := s.readSegment(slot[used : used+n])
		if err != nil {
			return err
		}

		s.stream.aead.Seal(slot[used:used], s.stream.nonceOf(s.nextSegment), text, nil)
		s.textLeft -= int64(n)
		end += used + n + TagSize
		s.nextSegment++

		if s.nextSegment > s.stream.last {
			break
		}
	}

	s.out = s.buffer.bytes[:end]
	return nil
}

// readSegment returns the text of the next segment, read into room, unless the
// source has it in memory: then it is not copied.
func (s *Sealer) readSegment(room []byte) (text []byte, err error) {
	text = room
	if memory, ok := s.src.(*bytes.Buffer); !ok {
		_, err = io.ReadFull(s.src, room)
	} else if text = memory.Next(len(room)); len(text) < len(room) {
		err = io.EOF
	}

	switch {
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case s.nextSegment == s.stream.last:
		err = expectEOF(s.src, ErrTrailing)
	}
	return text, err
}

// expectEOF returns nil if r is at its end, the error more if r has more
// bytes, and r's own error otherwise.
func expectEOF(r io.Reader, more error) error {
	var one [1]byte
	switch _, err := io.ReadFull(r, one[:]); err {
	case nil:
		return more
	case io.EOF: // ==: an error that wraps io.EOF is a failure, not the end
		return nil
	default:
		return err
	}
}

package crypt

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

// Sizes of parts, in bytes.
const (
	PartHeaderSize = 984
	// PartPrefixSize is what of a part it takes to verify its header, unless
	// it has a record.
	PartPrefixSize = PartHeaderSize + HeaderSize
	// PartOverhead is by how much every part is longer than its plaintext.
	PartOverhead  = PartPrefixSize + maxSegments*TagSize
	MinPartSize   = 5 << 20                     // S3's least for a part that is not the last
	MaxPartSize   = int64(5<<30) - PartOverhead // the longest plaintext whose part stays within S3's 5 GiB
	MaxPartNumber = 10_000

	maxSegments   = 512
	maxPartFields = PartHeaderSize - partFixed // key id and wrapped DEK
	partFixed     = 96
)

// partMagic starts each part.
const partMagic = "cmekpart"

const flagFinal = 0x01

// Part is the header of a part. Until Verify has returned nil, only KeyID and
// WrappedDEK may be used, and only to get the DEK.
type Part struct {
	Number     int   // 1 to MaxPartNumber
	Size       int64 // of the plaintext, in bytes
	Final      bool  // it can only be the last of its object
	Upload     [sha256.Size]byte
	KeyID      string // id of the KMS key, printable ASCII
	WrappedDEK []byte
	Record     []byte // of the parts ahead; see Record. Only a final part with an empty plaintext may have one
	Header     Header // of the stream

	mac        [macSize]byte
	recordSize int // length of the record, which ParsePart may not have been given
}

// UploadOf is the Part.Upload for an upload id.
func UploadOf(uploadID string) [sha256.Size]byte { return sha256.Sum256([]byte(uploadID)) }

// IsFinal says whether a part that a client sends can only be the last one of
// its upload.
func IsFinal(number int, size int64) bool { return size < MinPartSize || number == MaxPartNumber }

// partSegmentSize keeps a part within its 512 segments.
func partSegmentSize(size int64) segmentBytes {
	const most = maxSegments * SegmentSize
	return SegmentSize * segmentBytes(max(1, (size+HeaderSize+most-1)/most))
}

func (p *Part) segmentSize() segmentBytes { return partSegmentSize(p.Size) }

// streamSize is the size of the part's stream.
func (p *Part) streamSize() int64 { return p.segmentSize().storedSize(p.Size) }

// Whole is the window of the part's whole stream, which lies PartHeaderSize
// behind the start of the part.
func (p *Part) Whole() Window { return p.segmentSize().wholeWindow(p.Size) }

// Cover is the window for length bytes of the part's plaintext from offset;
// see the function Cover.
func (p *Part) Cover(offset, length int64) (Window, error) {
	return p.segmentSize().cover(p.Size, offset, length)
}

// HasRecord reports whether the part has a record. If ParsePart was given no
// more than PartPrefixSize bytes, it has to be given the whole part, of
// PartOverhead bytes, before the part can be verified.
func (p *Part) HasRecord() bool { return p.recordSize > 0 }

// Sign sets the MAC, for obj and under dek. Header must be the one of the
// stream.
func (p *Part) Sign(dek []byte, obj Object) error {
	mac, err := p.computeMAC(dek, obj)
	if err != nil {
		return err
	}
	p.mac = [macSize]byte(mac)
	return nil
}

// Verify returns ErrAuth unless the MAC is the one for obj under dek.
func (p *Part) Verify(dek []byte, obj Object) error {
	mac, err := p.computeMAC(dek, obj)
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, p.mac[:]) {
		return fmt.Errorf("%w: the MAC of the part header", ErrAuth)
	}
	return nil
}

func (p *Part) computeMAC(dek []byte, obj Object) ([]byte, error) {
	fields := append(macFields(p.KeyID, p.WrappedDEK, &p.Header, p.Size, p.Record, "part", obj),
		[]byte{p.flags()},
		binary.BigEndian.AppendUint16(nil, uint16(p.Number)),        //nolint:gosec // check sees to it
		binary.BigEndian.AppendUint32(nil, uint32(p.segmentSize())), //nolint:gosec // 10 MiB at most
		p.Upload[:])
	return macOf(dek, fields)
}

func (p *Part) flags() byte {
	if p.Final {
		return flagFinal
	}
	return 0
}

// check refuses what no part can be.
func (p *Part) check() error {
	var why string
	switch {
	case p.Number < 1 || p.Number > MaxPartNumber:
		why = fmt.Sprintf("part number %d", p.Number)
	case p.Size < 0 || p.Size > MaxPartSize:
		why = fmt.Sprintf("%d bytes of plaintext", p.Size)

	case p.recordSize > 0 && (p.Size > 0 || !p.Final || p.recordSize > maxRecord):
		why = "a record where none may be"
	default:
		return CheckPartKey(p.KeyID, p.WrappedDEK)
	}

	return fmt.Errorf("%w: part header: %s", ErrEnvelope, why)
}

// CheckPartKey returns ErrEnvelope for a key id and a wrapped DEK that no part
// header can hold.
func CheckPartKey(id string, wrapped []byte) error {
	var why string
	switch {
	case !isPrintable(id) || len(id) > maxKeyID:
		why = fmt.Sprintf("a key id of %d bytes, or not of printable ASCII", len(id))
	case len(wrapped) == 0:
		why = "no wrapped DEK"

	case len(id)+len(wrapped) > maxPartFields:
		why = fmt.Sprintf("key id and wrapped DEK of %d bytes, of which %d fit", len(id)+len(wrapped), maxPartFields)
	default:
		return nil
	}

	return fmt.Errorf("%w: part header: %s", ErrEnvelope, why)
}

// encode returns the part header, or ErrEnvelope for one that ParsePart would
// refuse.
func (p *Part) encode() ([]byte, error) {
	p.recordSize = len(p.Record)
	if err := p.check(); err != nil {
		return nil, err
	}

	b := make([]byte, 0, PartHeaderSize)
	b = append(b, partMagic...)
	b = append(b, Version, Suite, p.flags(), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(p.Number))          //nolint:gosec // checked, as the lengths below
	b = binary.BigEndian.AppendUint16(b, uint16(p.recordSize))      //nolint:gosec // as above
	b = binary.BigEndian.AppendUint64(b, uint64(p.Size))            //nolint:gosec // as above
	b = binary.BigEndian.AppendUint32(b, uint32(p.segmentSize()))   //nolint:gosec // 10 MiB at most
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.KeyID)))      //nolint:gosec // as above
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.WrappedDEK))) //nolint:gosec // as above
	b = append(b, p.Upload[:]...)
	b = append(b, p.mac[:]...)
	b = append(b, p.KeyID...)
	b = append(b, p.WrappedDEK...)

	return append(b, make([]byte, PartHeaderSize-len(b))...), nil
}

// ParsePart reads the header of a part from its first PartPrefixSize bytes,
// and the record if more of a part that has one are there. It returns
// ErrEnvelope or ErrVersion. Verify has still to be called.
func ParsePart(b []byte) (*Part, error) {
	if len(b) < PartPrefixSize || string(b[:8]) != partMagic {
		return nil, fmt.Errorf("%w: no part header", ErrEnvelope)
	}
	if b[8] != Version || b[9] != Suite {
		return nil, fmt.Errorf("%w: version %d, suite %d", ErrVersion, b[8], b[9])
	}

	keyLength, dekLength := int(binary.BigEndian.Uint16(b[28:])), int(binary.BigEndian.Uint16(b[30:]))
	if keyLength+dekLength > maxPartFields {
		return nil, fmt.Errorf("%w: part header: lengths", ErrEnvelope)
	}

	fields, end := b[partFixed:], keyLength+dekLength
	p := &Part{
		Number:     int(binary.BigEndian.Uint16(b[12:])),
		Size:       int64(binary.BigEndian.Uint64(b[16:])), //nolint:gosec // check refuses what is negative
		Final:      b[10] == flagFinal,
		Upload:     [sha256.Size]byte(b[32:64]),
		KeyID:      string(fields[:keyLength]),
		WrappedDEK: bytes.Clone(fields[keyLength:end]),
		Header:     Header(b[PartHeaderSize:PartPrefixSize]),
		mac:        [macSize]byte(b[64:96]),
		recordSize: int(binary.BigEndian.Uint16(b[14:])),
	}
	if err := p.check(); err != nil {
		return nil, err
	}

	if b[10]&^flagFinal != 0 || b[11] != 0 || !allZero(fields[end:maxPartFields]) || binary.BigEndian.Uint32(b[24:]) != uint32(p.segmentSize()) { //nolint:gosec // 10 MiB at most
		return nil, fmt.Errorf("%w: part header: flags, segment size or filling", ErrEnvelope)
	}
	if from := PartHeaderSize + int(p.streamSize()); p.recordSize > 0 && len(b) >= from+p.recordSize {
		p.Record = bytes.Clone(b[from : from+p.recordSize])
	}

	return p, nil
}

func allZero(b []byte) bool {
	var or byte
	for _, c := range b {
		or |= c
	}
	return or == 0
}

// PartSealer encrypts a part as its plaintext is read: header, stream and
// fill. Like a Sealer it seals the last segment only after the source has
// returned io.EOF, and Close may be called while a Read is under way.
type PartSealer struct {
	sealer *Sealer
	head   []byte // of the part, not handed out yet
	tail   []byte
}

// NewPartSealer returns a PartSealer of the plaintext of p, p.Size bytes of
// src, for obj and under dek. It sets p.Header, which comes from random, and
// signs p.
func NewPartSealer(src io.Reader, p *Part, obj Object, dek []byte, random io.Reader) (*PartSealer, error) {
	if err := p.check(); err != nil {
		return nil, err
	}

	sealer, err := newStreamSealer(src, p.Size, p.segmentSize(), dek, random)
	if err != nil {
		return nil, err
	}

	p.Header = sealer.Header()
	head, err := p.signAndEncode(dek, obj)
	if err != nil {
		_ = sealer.Close()
		return nil, err
	}

	tail := make([]byte, PartOverhead+p.Size-PartHeaderSize-p.streamSize())
	copy(tail, p.Record)
	return &PartSealer{sealer: sealer, head: head, tail: tail}, nil
}

func (p *Part) signAndEncode(dek []byte, obj Object) ([]byte, error) {
	if err := p.Sign(dek, obj); err != nil {
		return nil, err
	}
	return p.encode()
}

// Read yields the stored part, p.Size + PartOverhead bytes, then io.EOF.
// Errors are those of a Sealer.
func (s *PartSealer) Read(b []byte) (int, error) {
	if len(s.head) > 0 {
		n := copy(b, s.head)
		s.head = s.head[n:]
		return n, nil
	}

	n, err := s.sealer.Read(b)
	if err == io.EOF && len(s.tail) > 0 { //nolint:errorlint // bare, as every io.Reader must say it
		n = copy(b, s.tail)
		s.tail = s.tail[n:]
		return n, nil
	}

	return n, err
}

// Close gives the buffer back; see Sealer.Close.
func (s *PartSealer) Close() error { return s.sealer.Close() }

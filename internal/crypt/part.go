package crypt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// Sizes of parts, in bytes.
const (
	PartHeaderSize = 984
	// PartPrefixSize is the number of bytes needed to verify a part header.
	// A part with a record needs all its bytes.
	PartPrefixSize = PartHeaderSize + HeaderSize
	// PartOverhead is the difference between the stored size of a part and
	// its plaintext size. It is the same for all parts.
	PartOverhead  = PartPrefixSize + maxSegments*TagSize
	MinPartSize   = 5 << 20                     // the minimum in S3 for all parts except the last
	MaxPartSize   = int64(5<<30) - PartOverhead // the stored part must fit in S3's 5 GiB
	MaxPartNumber = 10_000

	maxSegments   = 512
	maxPartFields = PartHeaderSize - partFixed // room for key id and wrapped DEK
	partFixed     = 96
)

// partMagic is the first 8 bytes of each part.
const partMagic = "cmekpart"

// Flags of a part header.
const (
	flagFinal      = 0x01
	flagSealedMeta = 0x02 // in version 2 only
)

// Part is the header of a part. Until Verify has returned nil, only KeyID and
// WrappedDEK may be used, and only to get the DEK.
type Part struct {
	Number     int   // 1 to MaxPartNumber
	Size       int64 // plaintext size in bytes
	Final      bool  // no part can follow this one
	Upload     Upload
	SealedMeta bool   // the metadata of the upload is sealed; only in version 2
	KeyID      string // id of the KMS key, printable ASCII
	WrappedDEK []byte
	// Record describes the parts before this one; see Record. Only a final
	// part with an empty plaintext may have a record.
	Record []byte
	Header Header // of the part's stream

	mac        authCode
	recordSize int // the header's record length; Record itself may not have been parsed yet
}

// IsFinal reports whether a part from a client can only be the last one of
// its upload.
func IsFinal(number int, size int64) bool { return size < MinPartSize || number == MaxPartNumber }

// partSegmentSize returns the segment size of a part with size bytes of
// plaintext: the smallest multiple of SegmentSize that needs no more than
// 512 segments.
func partSegmentSize(size int64) segmentBytes {
	const most = maxSegments * SegmentSize
	return SegmentSize * segmentBytes(max(1, (size+HeaderSize+most-1)/most))
}

func (p *Part) segmentSize() segmentBytes { return partSegmentSize(p.Size) }

// streamSize returns the stored size of the part's stream.
func (p *Part) streamSize() int64 { return p.segmentSize().storedSize(p.Size) }

// Whole returns the window of the part's whole stream, which starts
// PartHeaderSize bytes into the part.
func (p *Part) Whole() Window { return p.segmentSize().wholeWindow(p.Size) }

// Cover returns the window for length bytes of the part's plaintext from
// offset; see the function Cover.
func (p *Part) Cover(offset, length int64) (Window, error) {
	return p.segmentSize().cover(p.Size, offset, length)
}

// HasRecord reports whether the part has a record. If it has, and ParsePart
// was given only PartPrefixSize bytes, call ParsePart again with all
// PartOverhead bytes of the part before Verify.
func (p *Part) HasRecord() bool { return p.recordSize > 0 }

// Sign sets the MAC, which binds the header to dek and obj. Header must
// already be that of the stream.
func (p *Part) Sign(dek []byte, obj Object) error {
	return p.mac.sign(dek, p.macFields(obj))
}

// Verify returns ErrAuth unless the MAC is correct for dek and obj.
func (p *Part) Verify(dek []byte, obj Object) error {
	return p.mac.verify(dek, p.macFields(obj), "the MAC of the part header")
}

func (p *Part) macFields(obj Object) [][]byte {
	version := p.Upload.version()
	return append(
		commonFields(version, p.KeyID, p.WrappedDEK, p.Header[:], sizeField(p.Size), p.Record, "part", obj),
		[]byte{p.flags()},
		binary.BigEndian.AppendUint16(nil, uint16(p.Number)),        //nolint:gosec // see check
		binary.BigEndian.AppendUint32(nil, uint32(p.segmentSize())), //nolint:gosec // 10 MiB at most
		p.Upload.bytes())
}

// Tag is the beginning of the MAC of a part header. It is different for each
// attempt at a part.
type Tag [12]byte

// Tag returns the tag of a part that was signed or verified.
func (p *Part) Tag() Tag { return Tag(p.mac[:]) }

// CheckMetadata returns ErrAuth if the part does not go with the metadata of
// its object. random is that of the sealed metadata, or zero if it is not
// sealed.
func (p *Part) CheckMetadata(random UploadRandom) error {
	sealed := random != (UploadRandom{})
	if p.Upload.version() == V1 || p.SealedMeta == sealed && (!sealed || p.Upload.Random == random) {
		return nil
	}
	return fmt.Errorf("%w: part %d is of an upload with other metadata", ErrAuth, p.Number)
}

func (p *Part) flags() (flags byte) {
	if p.Final {
		flags |= flagFinal
	}
	if p.SealedMeta {
		flags |= flagSealedMeta
	}
	return flags
}

// check returns ErrEnvelope for a header with impossible values.
func (p *Part) check() error {
	var why string
	switch {
	case p.Number < 1 || p.Number > MaxPartNumber:
		why = fmt.Sprintf("part number %d", p.Number)
	case p.Size < 0 || p.Size > MaxPartSize:
		why = fmt.Sprintf("%d bytes of plaintext", p.Size)
	case p.recordSize > 0 && (p.Size > 0 || !p.Final || p.recordSize > maxRecord):
		why = "a record in a part that may not have one"
	case p.SealedMeta && p.Upload.version() == V1:
		why = "a flag that version 1 does not have"
	default:
		return CheckPartKey(p.KeyID, p.WrappedDEK)
	}

	return fmt.Errorf("%w: part header: %s", ErrEnvelope, why)
}

// CheckPartKey returns ErrEnvelope if the key id and the wrapped DEK do not
// fit into a part header.
func CheckPartKey(id string, wrapped []byte) error {
	var why string
	switch {
	case !isPrintable(id) || len(id) > maxKeyID:
		why = fmt.Sprintf("the key id has %d bytes, or is not printable ASCII", len(id))
	case len(wrapped) == 0:
		why = "no wrapped DEK"
	case len(id)+len(wrapped) > maxPartFields:
		why = fmt.Sprintf("the key id and the wrapped DEK have %d bytes; at most %d fit",
			len(id)+len(wrapped), maxPartFields)
	default:
		return nil
	}

	return fmt.Errorf("%w: part header: %s", ErrEnvelope, why)
}

// encode returns the part header, or ErrEnvelope if ParsePart would refuse
// it.
func (p *Part) encode() ([]byte, error) {
	p.recordSize = len(p.Record)
	if err := p.check(); err != nil {
		return nil, err
	}

	b := make([]byte, 0, PartHeaderSize)
	b = append(b, partMagic...)
	b = append(b, byte(p.Upload.version()), Suite, p.flags(), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(p.Number))          //nolint:gosec // checked, like the lengths below
	b = binary.BigEndian.AppendUint16(b, uint16(p.recordSize))      //nolint:gosec // as above
	b = binary.BigEndian.AppendUint64(b, uint64(p.Size))            //nolint:gosec // as above
	b = binary.BigEndian.AppendUint32(b, uint32(p.segmentSize()))   //nolint:gosec // 10 MiB at most
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.KeyID)))      //nolint:gosec // as above
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.WrappedDEK))) //nolint:gosec // as above
	b = append(b, p.Upload.bytes()...)
	b = append(b, p.mac[:]...)
	b = append(b, p.KeyID...)
	b = append(b, p.WrappedDEK...)

	return append(b, make([]byte, PartHeaderSize-len(b))...), nil
}

// ParsePart decodes a part header from the first PartPrefixSize bytes of a
// part. It also returns the record if the part has one and b is long
// enough. Errors are ErrEnvelope or ErrVersion. The caller must still call
// Verify.
func ParsePart(b []byte) (*Part, error) {
	if len(b) < PartPrefixSize || string(b[:8]) != partMagic {
		return nil, fmt.Errorf("%w: not a part header", ErrEnvelope)
	}
	version := Version(b[8])
	if version != V1 && version != V2 || b[9] != Suite {
		return nil, fmt.Errorf("%w: version %d, suite %d", ErrVersion, b[8], b[9])
	}
	upload, err := parseUpload(version, b[32:64])
	if err != nil {
		return nil, err
	}

	keyLength, dekLength := int(binary.BigEndian.Uint16(b[28:])), int(binary.BigEndian.Uint16(b[30:]))
	if keyLength+dekLength > maxPartFields {
		return nil, fmt.Errorf("%w: part header: the key id and the wrapped DEK are too long", ErrEnvelope)
	}

	fields, end := b[partFixed:], keyLength+dekLength
	p := &Part{
		Number:     int(binary.BigEndian.Uint16(b[12:])),
		Size:       int64(binary.BigEndian.Uint64(b[16:])), //nolint:gosec // check refuses negative sizes
		Final:      b[10]&flagFinal != 0,
		SealedMeta: b[10]&flagSealedMeta != 0,
		Upload:     upload,
		KeyID:      string(fields[:keyLength]),
		WrappedDEK: bytes.Clone(fields[keyLength:end]),
		Header:     Header(b[PartHeaderSize:PartPrefixSize]),
		mac:        [macSize]byte(b[64:96]),
		recordSize: int(binary.BigEndian.Uint16(b[14:])),
	}
	if err := p.check(); err != nil {
		return nil, err
	}

	if b[10]&^(flagFinal|flagSealedMeta) != 0 || b[11] != 0 || !allZero(fields[end:maxPartFields]) ||
		int64(binary.BigEndian.Uint32(b[24:])) != int64(p.segmentSize()) {
		return nil, fmt.Errorf("%w: part header: flags, segment size or padding", ErrEnvelope)
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

// PartSealer encrypts a part as its plaintext is read: part header, stream
// and fill. Like a Sealer, it seals the last segment only after the source
// has returned io.EOF, and Close may be called during a Read.
type PartSealer struct {
	sealer *Sealer
	head   []byte // part header, the bytes not yet returned
	tail   []byte
}

// NewPartSealer returns a PartSealer for part p of obj, whose plaintext is
// the p.Size bytes of src. It sets p.Header, with bytes from random, and
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

// Read returns the stored part: p.Size + PartOverhead bytes, then io.EOF.
// Errors are those of Sealer.Read.
func (s *PartSealer) Read(b []byte) (int, error) {
	if len(s.head) > 0 {
		n := copy(b, s.head)
		s.head = s.head[n:]
		return n, nil
	}

	n, err := s.sealer.Read(b)
	if err == io.EOF && len(s.tail) > 0 { //nolint:errorlint // io.Reader requires a bare io.EOF
		n = copy(b, s.tail)
		s.tail = s.tail[n:]
		return n, nil
	}

	return n, err
}

// Close returns the buffer to its pool; see Sealer.Close.
func (s *PartSealer) Close() error { return s.sealer.Close() }

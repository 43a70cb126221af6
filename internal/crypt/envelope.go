package crypt

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
)

// Version is a version of the format.
type Version byte

// The versions. A zero Version in a struct that is to be written means
// Newest.
const (
	V1     Version = 1
	V2     Version = 2
	Newest         = V2
)

// Suite is the only suite that this package supports.
const Suite byte = 1

// Prefix starts the names of all metadata entries of an envelope. The names
// here do not include "x-amz-meta-".
const Prefix = "cmek-"

// Names of the envelope's metadata entries.
const (
	nameVersion = Prefix + "v"
	nameSuite   = Prefix + "suite"
	nameKey     = Prefix + "key"
	nameDEK     = Prefix + "dek"
	nameHeader  = Prefix + "header"
	nameSize    = Prefix + "size"
	nameSum     = Prefix + "sum"
	nameMeta    = Prefix + "meta"
	nameMAC     = Prefix + "mac"
	nameType    = Prefix + "type"   // only for multipart objects
	nameUpload  = Prefix + "upload" // as nameType
)

// names has the names of all entries, by the form in which net/http writes
// them.
var names = func() map[string]string {
	out := make(map[string]string)
	for _, name := range EntryNames() {
		out[textproto.CanonicalMIMEHeaderKey(name)] = name
	}
	return out
}()

// EntryNames returns the names of all metadata entries of the format.
func EntryNames() []string {
	return []string{
		nameVersion, nameSuite, nameKey, nameDEK, nameHeader, nameSize, nameSum, nameMeta, nameMAC,
		nameType, nameUpload,
	}
}

// LowerName returns the name of an entry, as net/http writes it, in lower
// case.
func LowerName(name string) string {
	if lower, ok := names[name]; ok {
		return lower
	}
	return strings.ToLower(name)
}

const (
	maxKeyID      = 512
	maxWrappedDEK = 1024
	maxSum        = 1024
	macSize       = sha256.Size
)

var (
	// ErrNoEnvelope is returned for metadata without any envelope entry:
	// cmekproxy did not encrypt the object, or all the entries were
	// removed.
	ErrNoEnvelope = errors.New("crypt: object has no envelope")
	// ErrEnvelope is returned for a malformed envelope: an entry is
	// missing, unknown, or not in its one valid encoding.
	ErrEnvelope = errors.New("crypt: malformed envelope")
	// ErrMultipart is returned for a multipart object. Each of its parts
	// has its own header; see ParseMark.
	ErrMultipart = errors.New("crypt: a multipart object")
	// ErrVersion is returned for a version or suite that this package does
	// not support.
	ErrVersion = errors.New("crypt: unknown envelope version or suite")
)

// Object names the object that an envelope belongs to. Key is the raw key,
// after percent-decoding.
type Object struct{ Bucket, Key string }

// Envelope is the encryption metadata of a single-PUT object.
type Envelope struct {
	Version    Version
	KeyID      string // id of the KMS key, printable ASCII
	WrappedDEK []byte
	Header     Header
	Size       int64  // plaintext size in bytes
	Sum        []byte // sealed checksums, see SealChecksums; may be nil
	Meta       []byte // sealed metadata, see SealMetadata; may be nil, and is nil in version 1
	mac        authCode
}

// Sign sets the MAC, which binds the envelope to dek and obj.
func (e *Envelope) Sign(dek []byte, obj Object) error {
	return e.mac.sign(dek, e.macFields(obj))
}

// Verify returns ErrAuth unless the MAC is correct for dek and obj. Before
// it has returned nil, only KeyID and WrappedDEK may be used, and only to
// get the DEK.
func (e *Envelope) Verify(dek []byte, obj Object) error {
	return e.mac.verify(dek, e.macFields(obj), "the envelope's MAC")
}

func (e *Envelope) macFields(obj Object) [][]byte {
	version := cmp.Or(e.Version, Newest)
	fields := commonFields(version, e.KeyID, e.WrappedDEK, e.Header[:], sizeField(e.Size), e.Sum, "object", obj)
	if version >= V2 {
		fields = append(fields, e.Meta)
	}
	return fields
}

// authCode is the MAC of an envelope, a part header or a mark.
type authCode [macSize]byte

// sign sets the MAC of fields.
func (a *authCode) sign(dek []byte, fields [][]byte) error {
	mac, err := macOf(dek, fields)
	if err != nil {
		return err
	}
	*a = authCode(mac)
	return nil
}

// verify returns ErrAuth unless a is the MAC of fields. what names it.
func (a *authCode) verify(dek []byte, fields [][]byte, what string) error {
	mac, err := macOf(dek, fields)
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, a[:]) {
		return fmt.Errorf("%w: %s", ErrAuth, what)
	}
	return nil
}

// commonFields returns the fields that all MACs have in common. extra is the
// sealed checksums or the record.
func commonFields(
	v Version, keyID string, wrappedDEK, header, size, extra []byte, purpose string, obj Object,
) [][]byte {
	return [][]byte{
		{byte(v)},
		{Suite},
		[]byte(keyID),
		wrappedDEK,
		header,
		size,
		extra,
		[]byte(purpose),
		[]byte(obj.Bucket),
		[]byte(obj.Key),
	}
}

func sizeField(size int64) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(size)) //nolint:gosec // never negative: the parsers check it
}

// macOf returns the MAC of the fields, each preceded by its length.
func macOf(dek []byte, fields [][]byte) (mac []byte, err error) {
	guard(func() { mac, err = hmacOf(dek, fields) })
	return mac, err
}

func hmacOf(dek []byte, fields [][]byte) ([]byte, error) {
	key, err := derive(dek, nil, infoMAC)
	if err != nil {
		return nil, err
	}
	defer clear(key)

	var hashes hashWiper
	defer hashes.wipe()

	h := hmac.New(hashes.new, key)
	defer Wipe(h)

	for _, field := range fields {
		var length [4]byte
		binary.BigEndian.PutUint32(length[:], uint32(len(field))) //nolint:gosec // fields are short
		h.Write(length[:])
		h.Write(field)
	}

	return h.Sum(nil), nil
}

// Metadata returns the metadata entries to store. It returns ErrEnvelope if
// ParseEnvelope would refuse them.
func (e *Envelope) Metadata() (map[string]string, error) {
	b64 := base64.StdEncoding.EncodeToString
	m := map[string]string{
		nameVersion: cmp.Or(e.Version, Newest).text(),
		nameSuite:   strconv.Itoa(int(Suite)),
		nameKey:     e.KeyID,
		nameDEK:     b64(e.WrappedDEK),
		nameHeader:  b64(e.Header[:]),
		nameSize:    strconv.FormatInt(e.Size, 10),
		nameMAC:     b64(e.mac[:]),
	}

	if len(e.Sum) > 0 {
		m[nameSum] = b64(e.Sum)
	}
	if len(e.Meta) > 0 {
		m[nameMeta] = b64(e.Meta)
	}
	if _, err := ParseEnvelope(m); err != nil {
		return nil, err
	}

	return m, nil
}

// ParseEnvelope reads the envelope from an object's metadata. Names must be
// in lower case and without "x-amz-meta-"; entries without Prefix are
// ignored. It returns ErrNoEnvelope, ErrEnvelope, ErrVersion or
// ErrMultipart; for the last, call ParseMark.
func ParseEnvelope(metadata map[string]string) (*Envelope, error) {
	p, err := newParser(metadata)
	if err != nil {
		return nil, err
	}
	if p.has(nameType) {
		return nil, ErrMultipart
	}

	e := &Envelope{
		Version:    p.version,
		KeyID:      p.keyID(),
		WrappedDEK: p.base64(nameDEK, 1, maxWrappedDEK),
		Size:       p.size(),
	}

	copy(e.Header[:], p.base64(nameHeader, HeaderSize, HeaderSize))
	copy(e.mac[:], p.base64(nameMAC, macSize, macSize))

	if p.has(nameSum) {
		e.Sum = p.base64(nameSum, 1, maxSum)
	}
	if p.version >= V2 && p.has(nameMeta) {
		e.Meta = p.base64(nameMeta, minMeta, maxMeta)
	}
	if err := p.end(); err != nil {
		return nil, err
	}

	return e, nil
}

var strictBase64 = base64.StdEncoding.Strict()

// entry is an entry of the metadata.
type entry struct{ name, value string }

// parser removes entries from left as they are read, and keeps the first
// error.
type parser struct {
	left    []entry
	version Version
	err     error
}

// newParser collects the entries that start with Prefix, and checks the
// version and the suite.
func newParser(metadata map[string]string) (*parser, error) {
	p := &parser{left: make([]entry, 0, len(names))}
	for name, value := range metadata {
		if strings.HasPrefix(name, Prefix) {
			p.left = append(p.left, entry{name, value})
		}
	}

	if len(p.left) == 0 {
		return nil, ErrNoEnvelope
	}
	v, suite := p.take(nameVersion), p.take(nameSuite)
	for _, known := range []Version{V1, V2} {
		if v == known.text() {
			p.version = known
		}
	}
	if p.err == nil && (p.version == 0 || suite != "1") {
		return nil, fmt.Errorf("%w: version %.20q, suite %.20q", ErrVersion, v, suite)
	}

	return p, nil
}

func (v Version) text() string { return strconv.Itoa(int(v)) }

func (p *parser) has(name string) bool { return p.find(name) >= 0 }

// find returns the index of an entry that is left, or -1.
func (p *parser) find(name string) int {
	return slices.IndexFunc(p.left, func(e entry) bool { return e.name == name })
}

// end fails if any entry is left.
func (p *parser) end() error {
	for _, e := range p.left {
		p.fail("unknown entry %.40q", e.name)
	}
	return p.err
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: "+format, append([]any{ErrEnvelope}, args...)...)
	}
}

func (p *parser) take(name string) string {
	at := p.find(name)
	if at < 0 {
		p.fail("no %s", name)
		return ""
	}
	value := p.left[at].value
	p.left = slices.Delete(p.left, at, at+1)
	return value
}

func (p *parser) keyID() string {
	id := p.take(nameKey)
	if len(id) > maxKeyID || !isPrintable(id) {
		p.fail("%s is %d bytes long, or not printable ASCII", nameKey, len(id))
	}
	return id
}

// isPrintable reports whether a key id is printable ASCII, and not empty.
func isPrintable(id string) bool {
	return id != "" && strings.IndexFunc(id, func(r rune) bool { return r < 0x21 || r > 0x7e }) < 0
}

// base64 returns the decoded entry, which must have least to most bytes.
// Strict decoding still accepts line breaks.
func (p *parser) base64(name string, least, most int) []byte {
	text := p.take(name)
	data, err := strictBase64.DecodeString(text)
	if err != nil || len(data) < least || len(data) > most || strings.ContainsAny(text, "\r\n") {
		p.fail("%s is not base64 of %d to %d bytes", name, least, most)
		return nil
	}
	return data
}

func (p *parser) size() int64 {
	text := p.take(nameSize)
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > MaxPlaintextSize || strconv.FormatInt(n, 10) != text {
		p.fail("%s is %.40q", nameSize, text)
	}
	return n
}

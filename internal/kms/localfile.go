package kms

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// A key file is text in the form that docs/format.md specifies. The older
// form is a single line with localPrefix1 and 32 bytes in standard base64
// with padding. It has one version.
const (
	localPrefix1     = "cmekproxy-local-key-v1:"
	localHeader      = "cmekproxy-local-key-v2\n"
	localLabelID     = "cmekproxy local key id v1"
	maxLocalVersions = 1000
	maxLocalFile     = 128 << 10 // in bytes, more than maxLocalVersions need
)

// LocalKeyState is the state of one version of a local key.
type LocalKeyState string

// The states of a version. The number of a destroyed version is never used
// again.
const (
	LocalKeyEnabled   LocalKeyState = "enabled"
	LocalKeyDisabled  LocalKeyState = "disabled"
	LocalKeyDestroyed LocalKeyState = "destroyed"
)

// LocalKeyFile is the content of a key file.
type LocalKeyFile struct {
	// ID is the key id; see Local.KeyID. It is derived from the first
	// version, and remains when that is destroyed.
	ID string
	// Disabled disables the key regardless of its versions.
	Disabled bool
	// Versions has version n at index n-1. There is at least one.
	Versions []LocalKeyVersion

	single bool // read from the older form
}

// LocalKeyVersion is one version of a local key.
type LocalKeyVersion struct {
	State   LocalKeyState
	Created time.Time // in whole seconds; zero if the file does not say

	key []byte // nil if destroyed
}

// newLocalKeyFile returns a key with one version.
func newLocalKeyFile(key []byte, created time.Time) *LocalKeyFile {
	return &LocalKeyFile{
		ID:       localKeyID(key),
		Versions: []LocalKeyVersion{{State: LocalKeyEnabled, Created: toSecond(created), key: bytes.Clone(key)}},
	}
}

// localKeyID derives the key id, which reveals nothing about the key.
func localKeyID(key []byte) string {
	h := sha256.New()
	h.Write([]byte(localLabelID))
	h.Write(key)
	return localKeyPrefix + hex.EncodeToString(h.Sum(nil)[:8])
}

func toSecond(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// Current returns the number of the newest enabled version, which wraps; 0
// if none exists.
func (f *LocalKeyFile) Current() int {
	for i, v := range slices.Backward(f.Versions) {
		if v.State == LocalKeyEnabled {
			return i + 1
		}
	}
	return 0
}

// Rotate adds a version with a new random key, and returns its number.
func (f *LocalKeyFile) Rotate(now time.Time) (version int, err error) {
	if len(f.Versions) >= maxLocalVersions {
		return 0, fmt.Errorf("a key has at most %d versions", maxLocalVersions)
	}
	key := make([]byte, 32)
	rand.Read(key)
	f.Versions = append(f.Versions, LocalKeyVersion{State: LocalKeyEnabled, Created: toSecond(now), key: key})
	return len(f.Versions), nil
}

// SetState changes the state of a version. Destroying a version wipes its
// key and cannot be undone.
func (f *LocalKeyFile) SetState(version int, state LocalKeyState) error {
	if version < 1 || version > len(f.Versions) {
		return fmt.Errorf("there is no version %d: the newest is %d", version, len(f.Versions))
	}

	v := &f.Versions[version-1]
	switch state {
	case LocalKeyEnabled, LocalKeyDisabled:
		if v.State == LocalKeyDestroyed {
			return fmt.Errorf("version %d is destroyed and cannot be restored", version)
		}
	case LocalKeyDestroyed:
		clear(v.key)
		v.key = nil
	default:
		return fmt.Errorf("unknown state %q", state)
	}

	v.State = state
	return nil
}

// Wipe clears the keys. Afterwards f can be inspected, but not written or
// used.
func (f *LocalKeyFile) Wipe() {
	for _, v := range f.Versions {
		clear(v.key)
	}
}

// Append appends the text of the file to b, always in the newer form.
func (f *LocalKeyFile) Append(b []byte) []byte {
	start := len(b)
	b = append(b, localHeader...)
	b = append(b, "id "+f.ID+"\nstate "...)

	if f.Disabled {
		b = append(b, LocalKeyDisabled+"\n"...)
	} else {
		b = append(b, LocalKeyEnabled+"\n"...)
	}

	for i, v := range f.Versions {
		b = append(b, "version "...)
		b = strconv.AppendInt(b, int64(i+1), 10)
		b = append(b, " "+string(v.State)+" "...)

		if v.Created.IsZero() {
			b = append(b, '-')
		} else {
			b = v.Created.AppendFormat(b, time.RFC3339)
		}

		b = append(b, ' ')
		if v.State == LocalKeyDestroyed {
			b = append(b, '-')
		} else {
			b = base64.StdEncoding.AppendEncode(b, v.key)
		}

		b = append(b, '\n')
	}

	return appendChecksum(b, start)
}

func appendChecksum(b []byte, start int) []byte {
	sum := sha256.Sum256(b[start:])
	b = append(b, localChecksum...)
	b = hex.AppendEncode(b, sum[:])
	return append(b, '\n')
}

const localChecksum = "checksum "

// ParseLocalKeyFile parses a key file in either form, and does not retain
// text. It accepts exactly what Append writes. In the older form, the final
// newline is optional. Errors never quote a key.
func ParseLocalKeyFile(text []byte) (*LocalKeyFile, error) {
	switch {
	case bytes.HasPrefix(text, []byte(localPrefix1)):
		key, err := parseLocalSecret(bytes.TrimSuffix(text[len(localPrefix1):], []byte("\n")))
		if err != nil {
			return nil, fmt.Errorf("not a local key: %w", err)
		}
		defer clear(key)

		file := newLocalKeyFile(key, time.Time{})
		file.single = true
		return file, nil
	case bytes.HasPrefix(text, []byte(localHeader)):
		if len(text) > maxLocalFile {
			return nil, fmt.Errorf("the key file is longer than %d bytes", maxLocalFile)
		}
		return parseLocalVersions(text)
	default:
		return nil, fmt.Errorf("not a local key: it does not begin with %q", localHeader[:len(localHeader)-1])
	}
}

// parseLocalVersions checks the checksum first: if the file was truncated,
// damaged or edited, other errors would be misleading.
func parseLocalVersions(text []byte) (_ *LocalKeyFile, err error) {
	body := len(text) - len(localChecksum) - 2*sha256.Size - 1
	if body < len(localHeader) || text[body-1] != '\n' || !bytes.HasPrefix(text[body:], []byte(localChecksum)) {
		return nil, errors.New("the key file does not end with its checksum: it was truncated or extended")
	}

	want := appendChecksum(bytes.Clone(text[:body]), 0)
	defer clear(want)

	if !bytes.Equal(want, text) {
		return nil, errors.New("the key file does not match its checksum: it was damaged or edited")
	}

	lines := bytes.Split(bytes.TrimSuffix(text[len(localHeader):body], []byte("\n")), []byte("\n"))
	if len(lines) < 3 {
		return nil, errors.New("the key file has no id, no state or no version")
	}
	if len(lines)-2 > maxLocalVersions {
		return nil, fmt.Errorf("the key file has more than %d versions", maxLocalVersions)
	}

	file := &LocalKeyFile{Versions: make([]LocalKeyVersion, 0, len(lines)-2)}
	defer func() {
		if err != nil {
			file.Wipe()
		}
	}()

	if file.ID, err = parseLocalID(lines[0]); err != nil {
		return nil, err
	}

	switch string(lines[1]) {
	case "state enabled":
	case "state disabled":
		file.Disabled = true
	default:
		return nil, errors.New("line 3 of the key file: neither \"state enabled\" nor \"state disabled\"")
	}

	for i, line := range lines[2:] {
		v, err := parseLocalVersion(line, i+1)
		if err != nil {
			return nil, fmt.Errorf("line %d of the key file: %w", i+4, err)
		}
		file.Versions = append(file.Versions, v)
	}

	if first := file.Versions[0]; first.State != LocalKeyDestroyed && localKeyID(first.key) != file.ID {
		return nil, errors.New("line 2 of the key file: the id does not match version 1")
	}
	return file, nil
}

var localIDForm = regexp.MustCompile(`^local:[0-9a-f]{16}$`)

func parseLocalID(line []byte) (string, error) {
	id, ok := bytes.CutPrefix(line, []byte("id "))
	if !ok || !localIDForm.Match(id) {
		return "", errors.New("line 2 of the key file: not \"id local:\" and 16 hexadecimal digits")
	}
	return string(id), nil
}

// parseLocalVersion parses "version NUMBER STATE CREATED KEY".
func parseLocalVersion(line []byte, number int) (v LocalKeyVersion, err error) {
	fields := bytes.Split(line, []byte(" "))
	if len(fields) != 5 || string(fields[0]) != "version" {
		return v, errors.New("not of the form \"version NUMBER STATE CREATED KEY\"")
	}
	if string(fields[1]) != strconv.Itoa(number) {
		return v, fmt.Errorf("version %d is missing or out of order", number)
	}

	v.State = LocalKeyState(fields[2])
	if created := string(fields[3]); created != "-" {
		v.Created, err = time.Parse(time.RFC3339, created)
		if err != nil || v.Created.IsZero() || v.Created.UTC().Format(time.RFC3339) != created {
			return v, fmt.Errorf("version %d has no creation time of the form 2006-01-02T15:04:05Z", number)
		}
		v.Created = v.Created.UTC()
	}

	switch v.State {
	case LocalKeyEnabled, LocalKeyDisabled:
		if v.key, err = parseLocalSecret(fields[4]); err != nil {
			return v, fmt.Errorf("version %d: %w", number, err)
		}
	case LocalKeyDestroyed:
		if string(fields[4]) != "-" {
			return v, fmt.Errorf("version %d is destroyed but has a key", number)
		}
	default:
		return v, fmt.Errorf("the state of version %d is not enabled, disabled or destroyed", number)
	}

	return v, nil
}

// parseLocalSecret decodes 32 bytes in standard base64 with padding.
func parseLocalSecret(encoded []byte) ([]byte, error) {
	key := make([]byte, base64.StdEncoding.DecodedLen(len(encoded)))
	n, err := base64.StdEncoding.Strict().Decode(key, encoded)
	if err != nil || n != 32 || len(encoded) != 44 {
		clear(key)
		return nil, errors.New("not 32 bytes in base64")
	}

	key = key[:n]
	if err := crypt.CheckDEK(key); err != nil { // a key has the size of a DEK, and must not be zero either
		return nil, errors.New("all zero")
	}

	return key, nil
}

package kms

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// A wrapped DEK begins with a byte that names its form, and ends with a random
// 12-byte nonce, the encrypted DEK, and a 16-byte tag. Form 2 has the number
// of the key's version in between, in 4 bytes; form 1 is from before keys had
// versions, and always of version 1. All of it is authenticated.
const (
	localForm1  = 1
	localForm2  = 2
	localSealed = 12 + DEKSize + 16
)

// localKeyPrefix begins all key ids.
const localKeyPrefix = "local:"

// localLabelAAD keeps what is wrapped here apart from other uses of a key.
const localLabelAAD = "cmekproxy local wrap v1"

// Local is the provider "local": an AES-256-GCM key in a file, of which there
// can be several versions. The newest one that is enabled wraps; a blob names
// its version, so that older ones go on to unwrap what they wrapped.
//
// The key is read from the file at every use and not kept in memory, so that
// moving the file away revokes the key as a KMS would: NotFound. So does a
// file that holds another key; one that others may read is Denied. What
// ChangeLocalKeyFile does to the file is in force with the next use.
//
// A key that is disabled, or has only versions that are, is Disabled; one
// whose versions are all destroyed is NotFound. A blob of a version that is
// not enabled, while another one is, is Denied: Disabled and NotFound speak of
// the key as a whole, and would have a caller give up all of it, the versions
// in force too.
//
// Random nonces limit one version to 2^32 wraps (NIST SP 800-38D, section 8.3).
type Local struct {
	path string
	id   string
}

// NewLocal opens the key in the file at path. It refuses a file that all users
// may access in any way, or that ParseLocalKeyFile refuses. The file's group
// may have access, as it has to the files of Kubernetes secrets. A key that is
// disabled can be opened.
func NewLocal(path string) (*Local, error) {
	l := &Local{path: path, id: localKeyPrefix + path} // until the real one is known
	file, err := l.read("open")
	if err != nil {
		return nil, err
	}
	defer file.Wipe()
	l.id = file.ID
	return l, nil
}

// KeyID is "local:" and 16 hexadecimal digits of a one-way hash of the key's
// first version.
func (l *Local) KeyID() string { return l.id }

// Wrap implements Wrapper.
func (l *Local) Wrap(ctx context.Context, dek []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkWrap(ctx, l.id, dek, ec); err != nil {
		return nil, err
	}

	file, err := l.open("wrap")
	if err != nil {
		return nil, err
	}
	defer file.Wipe()

	version := file.Current()
	if version == 0 {
		return nil, l.noVersion("wrap", file)
	}

	aead, err := newGCM(file.Versions[version-1].key)
	if err != nil {
		return nil, l.fail(Internal, "wrap", "", err)
	}
	defer crypt.Wipe(aead)

	blob := make([]byte, 1, 1+4+localSealed)
	blob[0] = localForm1 // a file of one line may still be read by a proxy that knows no other form

	if !file.single {
		blob[0] = localForm2
		blob = binary.BigEndian.AppendUint32(blob, uint32(version)) //nolint:gosec // at most maxLocalVersions
	}

	return aead.Seal(blob, nil, dek, l.aad(blob, ec)), nil
}

// Unwrap implements Wrapper.
func (l *Local) Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkCall(ctx, "unwrap", l.id, ec); err != nil {
		return nil, err
	}

	file, err := l.open("unwrap")
	if err != nil {
		return nil, err
	}
	defer file.Wipe()

	version, prefix := localBlob(wrapped)
	if version == 0 {
		return nil, l.fail(InvalidCiphertext, "unwrap", "", errors.New("not a blob of a local key"))
	}
	if err := l.usable(file, version); err != nil {
		return nil, err
	}

	aead, err := newGCM(file.Versions[version-1].key)
	if err != nil {
		return nil, l.fail(Internal, "unwrap", "", err)
	}
	defer crypt.Wipe(aead)

	dek, err := aead.Open(nil, nil, wrapped[prefix:], l.aad(wrapped[:prefix], ec))
	if err != nil {
		return nil, l.fail(InvalidCiphertext, "unwrap", "", errors.New("authentication failed"))
	}

	return dek, nil
}

// localVersion is the version that a blob names. Blobs of other providers can
// look like those of this one, which are told by the key id.
func localVersion(keyID string, blob []byte) string {
	version, _ := localBlob(blob)
	if version == 0 || !strings.HasPrefix(keyID, localKeyPrefix) {
		return ""
	}
	return strconv.FormatUint(uint64(version), 10)
}

// localBlob returns the version that a blob names, 0 for what is no blob, and
// the length of what is before the nonce.
func localBlob(wrapped []byte) (version uint32, prefix int) {
	switch {
	case len(wrapped) == 1+localSealed && wrapped[0] == localForm1:
		return 1, 1
	case len(wrapped) == 1+4+localSealed && wrapped[0] == localForm2:
		return binary.BigEndian.Uint32(wrapped[1:]), 1 + 4
	default:
		return 0, 0
	}
}

// open reads the file afresh, and makes sure that it has the key that this
// Local was opened with, and that it is not disabled.
func (l *Local) open(op string) (*LocalKeyFile, error) {
	file, err := l.read(op)
	if err != nil {
		return nil, err
	}

	switch {
	case file.ID != l.id:
		err = l.fail(NotFound, op, "KeyReplaced", errors.New("the file holds another key now"))
	case file.Disabled:
		err = l.fail(Disabled, op, "KeyDisabled", nil)
	default:
		return file, nil
	}

	file.Wipe()
	return nil, err
}

// usable says what is against the use of a version that a blob names. The blob
// may be forged, as anybody can write a number; a number that the key never
// had is therefore the blob's fault.
func (l *Local) usable(file *LocalKeyFile, version uint32) error {
	if int64(version) > int64(len(file.Versions)) {
		return l.fail(InvalidCiphertext, "unwrap", "UnknownVersion", fmt.Errorf("the key has no version %d", version))
	}

	state := file.Versions[version-1].State
	if state == LocalKeyEnabled {
		return nil
	}
	if file.Current() == 0 {
		return l.noVersion("unwrap", file)
	}

	reason := "VersionDisabled"
	if state == LocalKeyDestroyed {
		reason = "VersionDestroyed"
	}

	return l.fail(Denied, "unwrap", reason, fmt.Errorf("version %d of the key is %s", version, state))
}

// noVersion is the error of a key that has no enabled version. One disabled
// version can be enabled again, and so can the key.
func (l *Local) noVersion(op string, file *LocalKeyFile) *Error {
	for _, v := range file.Versions {
		if v.State == LocalKeyDisabled {
			return l.fail(Disabled, op, "VersionDisabled", errors.New("the key has no version that is enabled"))
		}
	}
	return l.fail(NotFound, op, "VersionDestroyed", errors.New("all versions of the key are destroyed"))
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	defer crypt.Wipe(block) // the AEAD has a copy
	return cipher.NewGCMWithRandomNonce(block)
}

// aad encodes what is before the nonce, the key id and the context so that no
// two of them give the same bytes.
func (l *Local) aad(prefix []byte, ec EncryptionContext) []byte {
	aad := append([]byte(localLabelAAD), prefix...) // the first byte says how long it is
	return appendContext(appendString(aad, l.id), ec)
}

func (l *Local) read(op string) (*LocalKeyFile, error) {
	file, failure := readLocal(l.path)
	if failure != nil {
		failure.Op, failure.KeyID = op, l.id
		return nil, failure
	}
	return file, nil
}

func (l *Local) fail(kind Kind, op, reason string, err error) *Error {
	return &Error{Kind: kind, Op: op, KeyID: l.id, Reason: reason, Err: err}
}

// readLocal reads a key file. The error lacks operation and key id.
func readLocal(path string) (*LocalKeyFile, *Error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, localFileError(err)
	}
	defer f.Close()
	return readOpenLocal(f)
}

// readOpenLocal is readLocal of an open file. What it checks, it checks on
// that: a path can change in between.
func readOpenLocal(f *os.File) (*LocalKeyFile, *Error) {
	info, err := f.Stat()
	if err != nil {
		return nil, localFileError(err)
	}
	if !info.Mode().IsRegular() {
		return nil, &Error{Kind: NotFound, Reason: "NotAFile", Err: fmt.Errorf("%s is not a regular file", f.Name())}
	}

	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return nil, &Error{Kind: Denied, Reason: "FileMode", Err: fmt.Errorf(
			"%s has mode %04o: all users may access it (chmod o= it)", f.Name(), mode)}
	}

	text := make([]byte, min(info.Size(), maxLocalFile)+1) // one more, to see a longer file
	defer clear(text)

	n, err := io.ReadFull(f, text)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, localFileError(err)
	}

	file, err := ParseLocalKeyFile(text[:n])
	if err != nil {
		return nil, &Error{Kind: NotFound, Reason: "NoKeyInFile", Err: fmt.Errorf("%s: %w", f.Name(), err)}
	}

	return file, nil
}

// localFileError tells a file that is gone from one that cannot be read just
// now, such as with too many files open.
func localFileError(err error) *Error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return &Error{Kind: NotFound, Reason: "NoKeyFile", Err: err}
	case errors.Is(err, fs.ErrPermission):
		return &Error{Kind: Denied, Reason: "FileMode", Err: err}
	default:
		return &Error{Kind: Unreachable, Err: err}
	}
}

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

// A wrapped DEK starts with a byte for its form, and ends with a random
// nonce of 12 bytes, the encrypted DEK, and a tag of 16 bytes. Form 2 has
// the version of the key in between, in 4 bytes. Form 1 is older than
// versions and always means version 1. All of this is authenticated.
const (
	localForm1  = 1
	localForm2  = 2
	localSealed = 12 + DEKSize + 16
)

// localKeyPrefix starts all key ids.
const localKeyPrefix = "local:"

// localLabelAAD separates wrapping from other uses of a key.
const localLabelAAD = "cmekproxy local wrap v1"

// Local is the provider "local": an AES-256-GCM key in a file, which can
// have several versions. The newest enabled version wraps. A blob contains
// its version, so older versions can still unwrap.
//
// The key is read from the file for each use and not kept in memory.
// Therefore moving the file away revokes the key with NotFound, as in a
// KMS. A file with another key gives NotFound too, and a file that all
// users can access gives Denied. Changes by ChangeLocalKeyFile apply from
// the next use.
//
// A key is Disabled if it is disabled itself, or has no enabled version and
// at least one disabled version. It is NotFound if all its versions are
// destroyed. If a blob's version is not enabled but another version is, the
// error is Denied: Disabled and NotFound concern the whole key, and callers
// would purge all versions.
//
// Random nonces limit one version to 2^32 wraps (NIST SP 800-38D, section
// 8.3).
type Local struct {
	path string
	id   string
}

// NewLocal opens the key in the file at path. It refuses a file that other
// users can access in any way, or that ParseLocalKeyFile refuses. The
// file's group may have access, because Kubernetes gives it access to
// secrets. A disabled key can be opened.
func NewLocal(path string) (*Local, error) {
	l := &Local{path: path, id: localKeyPrefix + path} // until the id is known
	file, err := l.read("open")
	if err != nil {
		return nil, err
	}
	defer file.Wipe()

	l.id = file.ID
	return l, nil
}

// KeyID returns "local:" and 16 hexadecimal digits of a hash of the key's
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
	blob[0] = localForm1 // an older proxy may share a one-line file, and knows only form 1

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

// localVersion returns the version in a blob. Other providers' blobs can
// look the same, so the key id decides.
func localVersion(keyID string, blob []byte) string {
	version, _ := localBlob(blob)
	if version == 0 || !strings.HasPrefix(keyID, localKeyPrefix) {
		return ""
	}
	return strconv.FormatUint(uint64(version), 10)
}

// localBlob returns the version in a blob and the length of the prefix
// before the nonce. The version is 0 if it is not a blob of this provider.
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

// open reads the file, and checks that it still contains the key that this
// Local was opened with and that the key is enabled.
func (l *Local) open(op string) (*LocalKeyFile, error) {
	file, err := l.read(op)
	if err != nil {
		return nil, err
	}

	switch {
	case file.ID != l.id:
		err = l.fail(NotFound, op, "KeyReplaced", errors.New("the file now contains another key"))
	case file.Disabled:
		err = l.fail(Disabled, op, "KeyDisabled", nil)
	default:
		return file, nil
	}

	file.Wipe()
	return nil, err
}

// usable returns an error if the version in a blob cannot be used. The blob
// may be forged with any number, so an unknown version is an error of the
// blob.
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

// noVersion returns the error for a key without an enabled version. It is
// Disabled if a version could be enabled again.
func (l *Local) noVersion(op string, file *LocalKeyFile) *Error {
	for _, v := range file.Versions {
		if v.State == LocalKeyDisabled {
			return l.fail(Disabled, op, "VersionDisabled", errors.New("the key has no enabled version"))
		}
	}
	return l.fail(NotFound, op, "VersionDestroyed", errors.New("all versions of the key are destroyed"))
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	defer crypt.Wipe(block) // the AEAD has its own copy
	return cipher.NewGCMWithRandomNonce(block)
}

// aad encodes the prefix before the nonce, the key id and the context
// unambiguously.
func (l *Local) aad(prefix []byte, ec EncryptionContext) []byte {
	aad := append([]byte(localLabelAAD), prefix...) // its first byte determines its length
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

// readLocal reads a key file. The returned error has no Op and KeyID yet.
func readLocal(path string) (*LocalKeyFile, *Error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, localFileError(err)
	}
	defer f.Close()
	return readOpenLocal(f)
}

// readOpenLocal is readLocal for an open file. The checks use the open
// file, because the path could change between them.
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
			"%s has mode %04o: all users can access it (fix: chmod o= FILE)", f.Name(), mode)}
	}

	text := make([]byte, min(info.Size(), maxLocalFile)+1) // one byte more, to detect longer files
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

// localFileError distinguishes a missing file from one that cannot be read
// at the moment, for example because too many files are open.
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

package kms

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// The key file is one line: a prefix that names its format, and 32 bytes in standard base64 with padding.
const (
	localPrefix     = "cmekproxy-local-key-v1:"
	localFileLength = len(localPrefix) + 44 + 1 // with the line feed
)

// A wrapped DEK is a version byte, a random 12-byte nonce, the encrypted DEK, and a 16-byte tag. The version byte is
// authenticated too.
const (
	localVersion    = 1
	localBlobLength = 1 + 12 + DEKSize + 16
)

// Labels keep apart the uses of hash and key.
const (
	localLabelID  = "cmekproxy local key id v1"
	localLabelAAD = "cmekproxy local wrap v1"
)

// Local is the provider "local": an AES-256-GCM key in a file.
//
// The key is read from the file at every use and not kept in memory, so that moving the file away revokes the key as a
// KMS would: NotFound. So does a file that holds another key; one that others may read is Denied. Random nonces limit
// one key to 2^32 wraps (NIST SP 800-38D, section 8.3).
type Local struct {
	path  string
	keyID string
}

// CreateLocalKeyFile writes a new random key to a new file of mode 0600, and makes sure that it is on disk: what was
// sealed under a lost key is lost. It never overwrites: an existing file is an error that is fs.ErrExist.
func CreateLocalKeyFile(path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("creating a local key: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	key := make([]byte, 32)
	defer clear(key)
	rand.Read(key)
	line := base64.StdEncoding.AppendEncode([]byte(localPrefix), key)
	line = append(line, '\n')
	defer clear(line)
	_, err = f.Write(line)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("creating a local key: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// NewLocal opens the key in the file at path. It refuses a file that group or others may access in any way, that is
// not of the form CreateLocalKeyFile writes, or whose key is all zero.
func NewLocal(path string) (*Local, error) {
	l := &Local{path: path, keyID: "local:" + path} // until the real one is known
	key, err := l.read("open")
	if err != nil {
		return nil, err
	}
	defer clear(key)
	l.keyID = localKeyID(key)
	return l, nil
}

// KeyID is "local:" and 16 hexadecimal digits of a one-way hash of the key.
func (l *Local) KeyID() string { return l.keyID }

// Wrap implements Wrapper.
func (l *Local) Wrap(ctx context.Context, dek []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkWrap(ctx, l.keyID, dek, ec); err != nil {
		return nil, err
	}
	aead, err := l.aead("wrap")
	if err != nil {
		return nil, err
	}
	blob := make([]byte, 1, localBlobLength)
	blob[0] = localVersion
	return aead.Seal(blob, nil, dek, l.aad(ec)), nil
}

// Unwrap implements Wrapper.
func (l *Local) Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkCall(ctx, "unwrap", l.keyID, ec); err != nil {
		return nil, err
	}
	aead, err := l.aead("unwrap")
	if err != nil {
		return nil, err
	}
	if len(wrapped) != localBlobLength || wrapped[0] != localVersion {
		return nil, l.fail(InvalidCiphertext, "unwrap", "", errors.New("not a blob of a local key"))
	}
	dek, err := aead.Open(nil, nil, wrapped[1:], l.aad(ec))
	if err != nil {
		return nil, l.fail(InvalidCiphertext, "unwrap", "", errors.New("authentication failed"))
	}
	return dek, nil
}

// aead reads the key afresh and makes sure that it is still the one this Local was opened with.
func (l *Local) aead(op string) (cipher.AEAD, error) {
	key, err := l.read(op)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	if localKeyID(key) != l.keyID {
		return nil, l.fail(NotFound, op, "KeyReplaced", errors.New("the file holds another key now"))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, l.fail(Internal, op, "", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, l.fail(Internal, op, "", err)
	}
	return aead, nil
}

// aad encodes the key id and the context.
func (l *Local) aad(ec EncryptionContext) []byte {
	aad := append([]byte(localLabelAAD), localVersion)
	return appendContext(appendString(aad, l.keyID), ec)
}

// localKeyID derives a name that says nothing about the key.
func localKeyID(key []byte) string {
	h := sha256.New()
	h.Write([]byte(localLabelID))
	h.Write(key)
	return "local:" + hex.EncodeToString(h.Sum(nil)[:8])
}

// read returns the key in the file. What it checks, it checks on the open file: a path can change in between.
func (l *Local) read(op string) ([]byte, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, l.fileError(op, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, l.fileError(op, err)
	}
	if !info.Mode().IsRegular() {
		return nil, l.fail(NotFound, op, "NotAFile", fmt.Errorf("%s is not a regular file", l.path))
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, l.fail(Denied, op, "FileMode",
			fmt.Errorf("%s has mode %04o: group and others must have no access (chmod 600)", l.path, mode))
	}
	line := make([]byte, localFileLength+1) // one more, to see a longer file
	defer clear(line)
	n, err := io.ReadFull(f, line)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, l.fileError(op, err)
	}
	key, err := parseLocalKey(line[:n])
	if err != nil {
		return nil, l.fail(NotFound, op, "NoKeyInFile", fmt.Errorf("%s: %w", l.path, err))
	}
	return key, nil
}

// parseLocalKey reads the line of a key file. The final line feed may be missing.
func parseLocalKey(line []byte) ([]byte, error) {
	encoded, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte(localPrefix))
	if !ok {
		return nil, fmt.Errorf("not a local key: it does not begin with %q", localPrefix)
	}
	key := make([]byte, base64.StdEncoding.DecodedLen(len(encoded)))
	n, err := base64.StdEncoding.Strict().Decode(key, encoded)
	if err != nil || n != 32 || len(encoded) != 44 {
		clear(key)
		return nil, errors.New("not a local key: not 32 bytes in base64")
	}
	key = key[:n]
	if err := crypt.CheckDEK(key); err != nil { // a KEK has the size of a DEK, and is no more zero than one
		return nil, errors.New("not a local key: all zero")
	}
	return key, nil
}

// fileError tells a file that is gone from one that cannot be read just now, such as with too many files open.
func (l *Local) fileError(op string, err error) *Error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return l.fail(NotFound, op, "NoKeyFile", err)
	case errors.Is(err, fs.ErrPermission):
		return l.fail(Denied, op, "FileMode", err)
	default:
		return l.fail(Unreachable, op, "", err)
	}
}

func (l *Local) fail(kind Kind, op, reason string, err error) *Error {
	return &Error{Kind: kind, Op: op, KeyID: l.keyID, Reason: reason, Err: err}
}

// syncDir puts a new file's name on disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("creating a local key: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("creating a local key: %w", err)
	}
	return nil
}

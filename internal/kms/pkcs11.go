//go:build pkcs11 && cgo

package kms

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/miekg/pkcs11"
)

// A wrapped DEK is a version byte, a nonce of 12 bytes, the encrypted DEK,
// and a tag of 16 bytes. The version byte is authenticated too.
const (
	hsmVersion    = 1
	hsmNonce      = 12
	hsmTag        = 16
	hsmBlobLength = 1 + hsmNonce + DEKSize + hsmTag
	hsmLabelAAD   = "cmekproxy pkcs11 wrap v1"
)

// hsm is the provider "pkcs11": an AES-256 key that never leaves a hardware
// security module, used with CKM_AES_GCM (PKCS #11 Current Mechanisms
// v2.40, section 2.8.2). The encryption context is the additional
// authenticated data.
//
// One label and id identify one key. PKCS #11 has no versions of a key, and
// no portable way to tell which of several objects is the newest, so two
// matches are an error. To rotate, create another key in the token,
// configure it in addition to the old one, and name it in the rules.
//
// The nonce is random. The process chooses it, unless the token insists on
// choosing. Random nonces limit one key to 2^32 wraps (NIST SP 800-38D,
// section 8.3).
//
// A call into a module can block for any time and cannot be canceled.
// Therefore each call runs in a goroutine, which the caller abandons when
// its context ends. A module has at most maxModuleCalls of them. If all
// hang, further calls wait until their deadlines and get Unreachable.
type hsm struct {
	cfg    PKCS11Config
	id     string
	token  string // label
	module *hsmModule
	idle   chan *hsmSession
	// canary is a wrapped DEK of this key, with its context. It shows
	// whether the key was replaced, and whether an error is due to a blob
	// or to the token.
	canary        []byte
	canaryContext EncryptionContext
	choosesNonce  atomic.Bool // the token chooses nonces
}

// NewPKCS11 opens a key in an HSM: it loads the module, finds the token,
// logs in, finds the key, and makes a round trip. If the token refuses a
// PIN, this process never tries that PIN again, because tokens lock
// themselves after a few failures.
func NewPKCS11(ctx context.Context, cfg PKCS11Config) (Wrapper, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultPKCS11Timeout
	}

	cfg.KeyID = append([]byte(nil), cfg.KeyID...)
	h := &hsm{
		cfg: cfg, id: cfg.uri(cfg.TokenLabel), token: cfg.TokenLabel,
		module: moduleAt(cfg.Module), idle: make(chan *hsmSession, maxModuleCalls),
	}

	if err := cfg.check(); err != nil {
		return nil, &Error{Kind: Invalid, Op: "open", KeyID: h.id, Err: err}
	}
	if err := h.open(ctx); err != nil {
		return nil, err
	}

	canary, ec, err := RoundTrip(ctx, h)
	if err != nil {
		return nil, err
	}

	h.canary, h.canaryContext = canary, ec
	return h, nil
}

// open loads the module, and reads the token's label if only its slot is
// configured.
func (h *hsm) open(ctx context.Context) error {
	label, err := h.call(ctx, "open", func() ([]byte, error) {
		if err := h.module.load(); err != nil {
			return nil, err
		}

		return h.module.again(func() ([]byte, error) {
			_, info, err := h.findToken()
			return []byte(info.Label), err
		})
	})
	if err != nil {
		return err
	}

	h.token = string(label)
	h.id = h.cfg.uri(h.token)

	if len(h.id) > maxPKCS11KeyID {
		return &Error{
			Kind: Invalid, Op: "open", KeyID: h.id,
			Err: errors.New("the labels of the token and the key are too long"),
		}
	}

	return nil
}

// KeyID returns an RFC 7512 URI with the token's label, and with the key's
// label and id as configured.
func (h *hsm) KeyID() string { return h.id }

// Close closes the idle sessions. The module stays loaded.
func (h *hsm) Close() error {
	h.closeIdle()
	return nil
}

// Wrap implements Wrapper.
func (h *hsm) Wrap(ctx context.Context, dek []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkWrap(ctx, h.id, dek, ec); err != nil {
		return nil, err
	}

	own := append([]byte(nil), dek...) // the caller may wipe its copy while the module still uses it
	return h.call(ctx, "wrap", func() ([]byte, error) {
		defer clear(own)
		return h.withSession(func(s *hsmSession) ([]byte, error) { return h.seal(s, own, ec) })
	})
}

// Unwrap implements Wrapper.
func (h *hsm) Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkCall(ctx, "unwrap", h.id, ec); err != nil {
		return nil, err
	}
	if len(wrapped) != hsmBlobLength || wrapped[0] != hsmVersion {
		return nil, &Error{
			Kind: InvalidCiphertext, Op: "unwrap", KeyID: h.id, Err: errors.New("not a blob of a key in an HSM"),
		}
	}

	own := append([]byte(nil), wrapped...)
	return h.call(ctx, "unwrap", func() ([]byte, error) {
		return h.withSession(func(s *hsmSession) ([]byte, error) {
			dek, err := h.unseal(s, own, ec)
			if err != nil && isAmbiguous(err) && h.intact(s) == nil {
				err = errHSMBlob
			}
			return dek, err
		})
	})
}

// call runs do in a goroutine, as one of the module's calls, until do
// returns or ctx or the timeout ends. A late result is wiped.
func (h *hsm) call(ctx context.Context, op string, do func() ([]byte, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timeout)
	defer cancel()

	select {
	case h.module.calls <- struct{}{}:
	case <-ctx.Done():
		return nil, contextError(ctx, op, h.id)
	}

	type answer struct {
		out []byte
		err error
	}

	answers := make(chan answer)
	go func() {
		defer func() { <-h.module.calls }()
		out, err := do()
		select {
		case answers <- answer{out, err}:
		case <-ctx.Done():
			clear(out)
		}
	}()

	select {
	case a := <-answers:
		if a.err != nil {
			return nil, hsmFailure(a.err, op, h.id)
		}
		return a.out, nil
	case <-ctx.Done():
		return nil, contextError(ctx, op, h.id)
	}
}

// seal encrypts a DEK. Some tokens refuse nonces from outside, such as AWS
// CloudHSM and others in FIPS mode. They get a nonce of zeros, which they
// must replace by their own. A ciphertext with a nonce of zeros is never
// returned.
func (h *hsm) seal(s *hsmSession, dek []byte, ec EncryptionContext) ([]byte, error) {
	nonce := make([]byte, hsmNonce)
	if !h.choosesNonce.Load() {
		rand.Read(nonce)
		blob, err := h.encrypt(s, nonce, dek, ec)
		if !isCKR(err, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_ARGUMENTS_BAD) {
			return blob, err
		}
		clear(nonce)
	}

	blob, err := h.encrypt(s, nonce, dek, ec)
	if err != nil {
		return nil, err
	}
	if [hsmNonce]byte(blob[1:]) == [hsmNonce]byte{} {
		return nil, errors.New("the token neither accepts nor generates a nonce")
	}

	h.choosesNonce.Store(true)
	return blob, nil
}

// encrypt reads the nonce back after use, because some tokens replace it.
func (h *hsm) encrypt(s *hsmSession, nonce, dek []byte, ec EncryptionContext) ([]byte, error) {
	params := pkcs11.NewGCMParams(nonce, hsmAAD(ec), 8*hsmTag)
	defer params.Free()

	if err := h.module.ctx.EncryptInit(s.handle, gcm(params), s.key); err != nil {
		return nil, err
	}

	sealed, err := h.module.ctx.Encrypt(s.handle, dek)
	if err != nil {
		return nil, err
	}

	used := params.IV()
	if len(used) != hsmNonce || len(sealed) != DEKSize+hsmTag {
		return nil, fmt.Errorf("the token returned a nonce of %d bytes and a ciphertext of %d bytes", len(used),
			len(sealed))
	}

	blob := append(make([]byte, 0, hsmBlobLength), hsmVersion)
	return append(append(blob, used...), sealed...), nil
}

func (h *hsm) unseal(s *hsmSession, blob []byte, ec EncryptionContext) ([]byte, error) {
	params := pkcs11.NewGCMParams(blob[1:1+hsmNonce], hsmAAD(ec), 8*hsmTag)
	defer params.Free()
	if err := h.module.ctx.DecryptInit(s.handle, gcm(params), s.key); err != nil {
		return nil, err
	}
	return h.module.ctx.Decrypt(s.handle, blob[1+hsmNonce:])
}

func gcm(params *pkcs11.GCMParams) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}
}

func hsmAAD(ec EncryptionContext) []byte {
	return appendContext(append([]byte(hsmLabelAAD), hsmVersion), ec)
}

// intact checks that the session's key is the one that this hsm was opened
// with, and that it works. If it is intact, a blob that does not unwrap is
// itself bad. This is needed because some modules, such as SoftHSM 2.6,
// report a wrong tag as CKR_GENERAL_ERROR, which others use for a broken
// device.
func (h *hsm) intact(s *hsmSession) error {
	if h.canary == nil { // the key is being opened
		return errHSMUntested
	}

	dek, err := h.unseal(s, h.canary, h.canaryContext)
	clear(dek)

	if err == nil || !isAmbiguous(err) && !isBadBlob(err) {
		return err
	}

	dek = make([]byte, DEKSize)
	defer clear(dek)

	rand.Read(dek)
	blob, sealErr := h.seal(s, dek, h.canaryContext)
	if sealErr != nil {
		return err
	}

	again, openErr := h.unseal(s, blob, h.canaryContext)
	clear(again)

	if openErr != nil {
		return err
	}
	return errHSMReplaced
}

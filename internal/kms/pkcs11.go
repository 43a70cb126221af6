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

// A wrapped DEK is a version byte, a 12-byte nonce, the encrypted DEK, and a
// 16-byte tag. The version byte is authenticated too.
const (
	hsmVersion    = 1
	hsmNonce      = 12
	hsmTag        = 16
	hsmBlobLength = 1 + hsmNonce + DEKSize + hsmTag
	hsmLabelAAD   = "cmekproxy pkcs11 wrap v1"
)

// hsm is the provider "pkcs11": an AES-256 key that never leaves a hardware
// security module, used with CKM_AES_GCM (PKCS #11 Current Mechanisms v2.40,
// section 2.8.2). The additional authenticated data are the encryption
// context.
//
// One label and id name one key. PKCS#11 has no versions of a key, and no
// portable way to tell which of several objects is the newest, so that two
// that match are an error. To rotate, make another key in the token, configure
// it beside the old one, and let the rules name it.
//
// The nonce is random: the token's own where the token insists on choosing,
// else of this process. Random nonces limit one key to 2^32 wraps (NIST SP
// 800-38D, section 8.3).
//
// A call into a module blocks for as long as the module likes and cannot be
// canceled. Each one therefore runs in a goroutine that the caller leaves
// behind when its context ends; there are at most maxModuleCalls of them for
// one module, and whoever comes when all hang waits until its own deadline,
// and is told Unreachable.
type hsm struct {
	cfg    PKCS11Config
	id     string
	token  string // label
	module *hsmModule
	idle   chan *hsmSession
	// canary is a blob of this key, and canaryContext its context: what tells
	// a key that was replaced from one that is still there, and a blob that is
	// at fault from a token that is.
	canary        []byte
	canaryContext EncryptionContext
	choosesNonce  atomic.Bool // the token does
}

// NewPKCS11 opens a key in an HSM: it loads the module, finds the token, logs
// in, finds the key, and makes a round trip with it. A PIN that the token
// refuses is never tried again in this process, as a token locks itself after
// a few.
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

// open loads the module, and learns the token's label where only its slot is
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
			Err: errors.New("the labels of token and key are too long together"),
		}
	}

	return nil
}

// KeyID is a URI by RFC 7512, of the token's label and of the key's label and
// id as they are configured.
func (h *hsm) KeyID() string { return h.id }

// Wrap implements Wrapper.
func (h *hsm) Wrap(ctx context.Context, dek []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkWrap(ctx, h.id, dek, ec); err != nil {
		return nil, err
	}
	own := append([]byte(nil), dek...) // the caller may wipe its own before the module is done with it
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

// call runs do in a goroutine of its own, as one of those that the module is
// allowed, until it is done or ctx or the timeout ends. What comes too late is
// wiped.
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

// seal encrypts a DEK. A token that refuses the nonce of others (those of AWS
// CloudHSM and of some in FIPS mode do) gets zeros, which it has to replace by
// a nonce of its own: a ciphertext under a nonce of zeros is never let out.
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
		return nil, errors.New("the token takes no nonce, and makes none either")
	}

	h.choosesNonce.Store(true)
	return blob, nil
}

// encrypt reads the nonce back after the token has used it: some put their own
// in its place.
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
		return nil, fmt.Errorf("the token answered with a nonce of %d bytes and a ciphertext of %d", len(used),
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

// intact makes sure that the key of s is the one that this hsm was opened
// with, and that it works. A blob that does not unwrap while it is intact is
// itself at fault: some modules answer a wrong tag with CKR_GENERAL_ERROR
// (SoftHSM 2.6 does), which others say of a device that is broken.
func (h *hsm) intact(s *hsmSession) error {
	if h.canary == nil { // it is being opened
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

//go:build pkcs11 && cgo

package kms

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// maxModuleCalls limits the concurrent calls into one module, including
// those that hang, and the idle sessions of one key.
const maxModuleCalls = 16

// hsmModule is an HSM's library. The specification makes it global to the
// process: C_Initialize may be called only once, and a login to a token
// applies to all sessions (PKCS #11 Base v2.40, sections 5.4 and 5.6).
type hsmModule struct {
	path  string
	calls chan struct{}

	mu      sync.Mutex // protects loading and logging in
	ctx     *pkcs11.Ctx
	refused map[[sha256.Size]byte]bool // hashes of token and PIN

	restarting  sync.Mutex // held by the call that restarts the module
	generation  atomic.Uint64
	nextRestart time.Time
	rest        time.Duration // pause after a restart that did not help
}

// How often a module is restarted. Each restart ends the sessions of all
// its keys, even those of working tokens, so restarts that do not help
// become rare.
const (
	leastModuleRest = time.Second
	mostModuleRest  = 30 * time.Second
	// moduleDrain is how long a restart waits for other calls to end.
	moduleDrain = time.Second
)

// restart finalizes and initializes the library, and reports whether it
// did. The caller is one of the module's calls. All others must have ended,
// because the specification does not define what C_Finalize does to running
// calls (PKCS #11 Base v2.40, section 5.4). A call that hangs prevents the
// restart.
func (m *hsmModule) restart() bool {
	if !m.restarting.TryLock() {
		return false // another call is doing it, and waits for this one to end
	}
	defer m.restarting.Unlock()

	if time.Now().Before(m.nextRestart) {
		return false
	}

	m.rest = min(max(2*m.rest, leastModuleRest), mostModuleRest)
	m.nextRestart = time.Now().Add(m.rest) // even if another call hangs

	drain := time.NewTimer(moduleDrain)
	defer drain.Stop()

	held := 0
	defer func() {
		for range held {
			<-m.calls
		}
	}()

	for held < maxModuleCalls-1 {
		select {
		case m.calls <- struct{}{}:
			held++
		case <-drain.C:
			return false
		}
	}

	m.mu.Lock()
	defer m.mu.Unlock()

	if m.ctx == nil {
		return false
	}

	m.generation.Add(1)       // in any case: session handles may be reused
	_ = m.ctx.Finalize()      // it may not be initialized
	err := m.ctx.Initialize() // if this fails, the next calls fail and try again
	return err == nil || isCKR(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)
}

// again calls do. If the module reports that the token is gone, it restarts
// the module and calls do once more.
func (m *hsmModule) again(do func() ([]byte, error)) ([]byte, error) {
	out, err := do()
	if !isModuleGone(err) || !m.restart() {
		return out, err
	}
	if out, err = do(); !isModuleGone(err) { // the restart helped
		m.restarting.Lock()
		defer m.restarting.Unlock()
		m.rest, m.nextRestart = 0, time.Time{}
	}

	return out, err
}

var hsmModules = struct {
	sync.Mutex
	byPath map[string]*hsmModule
}{byPath: map[string]*hsmModule{}}

func moduleAt(path string) *hsmModule {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		// Two paths of one library must not become two modules that end
		// each other's sessions.
		path = real
	}

	hsmModules.Lock()
	defer hsmModules.Unlock()

	m := hsmModules.byPath[path]
	if m == nil {
		m = &hsmModule{path: path, calls: make(chan struct{}, maxModuleCalls), refused: map[[sha256.Size]byte]bool{}}
		hsmModules.byPath[path] = m
	}

	return m
}

// load loads and initializes the library once. It is never unloaded,
// because a module may have threads.
func (m *hsmModule) load() error {
	m.mu.Lock()
	defer m.mu.Unlock()

	if m.ctx != nil {
		return nil
	}

	ctx := pkcs11.New(m.path)
	if ctx == nil {
		return &Error{
			Kind: Invalid,
			Err:  fmt.Errorf("%s is not a PKCS #11 library, or a library that it needs is missing", m.path),
		}
	}

	if err := ctx.Initialize(); err != nil && !isCKR(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		return err
	}
	m.ctx = ctx
	return nil
}

// login logs this process in to the token of a session, unless it is
// already logged in. A refused PIN is not tried again: a key may be
// reopened every ten seconds, and the token would soon lock itself.
func (m *hsmModule) login(s pkcs11.SessionHandle, token pkcs11.TokenInfo, pin string) error {
	m.mu.Lock()
	defer m.mu.Unlock()

	attempt := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", token.Label, token.SerialNumber, pin))
	if m.refused[attempt] {
		return &Error{Kind: Denied, Reason: "CKR_PIN_INCORRECT", Err: errors.New(
			"the token has refused this PIN; " +
				"to avoid locking the token, the PIN is not tried again before a restart")}
	}

	err := m.ctx.Login(s, pkcs11.CKU_USER, pin)
	if isCKR(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
		return nil
	}
	if isCKR(err, pkcs11.CKR_PIN_INCORRECT) {
		m.refused[attempt] = true
	}

	return err
}

// hsmSession is a logged-in session, with the handle of the key in it.
type hsmSession struct {
	handle pkcs11.SessionHandle
	key    pkcs11.ObjectHandle
	// generation is that of the module. With an older one, the handles are
	// invalid or have been reused.
	generation uint64
}

// withSession runs use with a session. If the session, its login or its key
// handle is lost, it retries with a new session and looks up the key again,
// because a logout invalidates handles. The new session may be lost too, if
// another caller logs out at that moment.
func (h *hsm) withSession(use func(*hsmSession) ([]byte, error)) ([]byte, error) {
	return h.module.again(func() ([]byte, error) { return h.withNewSession(use) })
}

func (h *hsm) withNewSession(use func(*hsmSession) ([]byte, error)) ([]byte, error) {
	for attempt := 1; ; attempt++ {
		out, err := h.useOne(use)
		if err == nil || !isSessionLost(err) || attempt == 3 {
			return out, err
		}
		h.closeIdle()
	}
}

func (h *hsm) useOne(use func(*hsmSession) ([]byte, error)) ([]byte, error) {
	s := h.idleSession()
	if s == nil {
		var err error
		if s, err = h.newSession(); err != nil {
			return nil, err
		}
	}

	out, err := use(s)
	if err == nil || errors.Is(err, errHSMBlob) || isBadBlob(err) {
		select {
		case h.idle <- s:
			return out, err
		default:
		}
	}

	_ = h.module.ctx.CloseSession(s.handle) // an operation may still be active in it
	return out, err
}

// idleSession returns an idle session, or nil.
func (h *hsm) idleSession() *hsmSession {
	for {
		select {
		case s := <-h.idle:
			if s.generation == h.module.generation.Load() {
				return s
			}
		default:
			return nil
		}
	}
}

// closeIdle closes the idle sessions.
func (h *hsm) closeIdle() {
	for s := h.idleSession(); s != nil; s = h.idleSession() {
		_ = h.module.ctx.CloseSession(s.handle)
	}
}

func (h *hsm) newSession() (*hsmSession, error) {
	slot, token, err := h.findToken()
	if err != nil {
		return nil, err
	}

	handle, err := h.module.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, err
	}

	s := &hsmSession{handle: handle, generation: h.module.generation.Load()}
	if h.cfg.PIN != "" {
		err = h.module.login(handle, token, h.cfg.PIN)
	}
	if err == nil {
		s.key, err = h.findKey(handle)
	}

	if err == nil && h.canary != nil {
		err = h.intact(s)
	}
	if err != nil {
		_ = h.module.ctx.CloseSession(handle)
		return nil, err
	}

	return s, nil
}

// findToken returns the current slot of the token. If none exists, the
// error is Unreachable: a missing token says nothing about its keys.
func (h *hsm) findToken() (slot uint, info pkcs11.TokenInfo, err error) {
	if h.cfg.TokenLabel == "" {
		info, err = h.module.ctx.GetTokenInfo(h.cfg.Slot)
		if err == nil && h.token != "" && info.Label != h.token {
			err = &Error{
				Kind: Unreachable, Reason: "TokenReplaced",
				Err: fmt.Errorf("slot %d contains the token %q, not %q", h.cfg.Slot, info.Label, h.token),
			}
		}

		return h.cfg.Slot, info, err
	}

	slots, err := h.module.ctx.GetSlotList(true)
	if err != nil {
		return 0, info, err
	}

	found := 0
	for _, id := range slots {
		if i, err := h.module.ctx.GetTokenInfo(id); err == nil && i.Label == h.cfg.TokenLabel {
			slot, info = id, i
			found++
		}
	}

	switch found {
	case 1:
		return slot, info, nil
	case 0:
		return 0, info, &Error{
			Kind: Unreachable, Reason: reasonNoToken,
			Err: fmt.Errorf("no slot has a token with the label %q", h.cfg.TokenLabel),
		}
	default:
		return 0, info, &Error{
			Kind: Internal, Reason: "TokensAlike",
			Err: fmt.Errorf("%d tokens have the label %q", found, h.cfg.TokenLabel),
		}
	}
}

// findKey finds the key. If none exists, the error is NotFound only if
// the session is still logged in: otherwise the token hides private
// objects.
func (h *hsm) findKey(s pkcs11.SessionHandle) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
	}

	if h.cfg.KeyLabel != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, h.cfg.KeyLabel))
	}
	if len(h.cfg.KeyID) > 0 {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, h.cfg.KeyID))
	}

	if err := h.module.ctx.FindObjectsInit(s, template); err != nil {
		return 0, err
	}

	keys, _, err := h.module.ctx.FindObjects(s, 2)
	if err := errors.Join(err, h.module.ctx.FindObjectsFinal(s)); err != nil {
		return 0, err
	}

	switch len(keys) {
	case 1:
		return keys[0], h.checkSize(s, keys[0])
	case 0:
		return 0, h.noKey(s)
	default:
		return 0, &Error{
			Kind: Internal, Reason: "KeysAlike",
			Err: errors.New("several keys in the token match: configure both label and id"),
		}
	}
}

func (h *hsm) noKey(s pkcs11.SessionHandle) error {
	info, err := h.module.ctx.GetSessionInfo(s)
	if err != nil {
		return err
	}
	if h.cfg.PIN != "" && info.State != pkcs11.CKS_RO_USER_FUNCTIONS && info.State != pkcs11.CKS_RW_USER_FUNCTIONS {
		return pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN)
	}

	return &Error{Kind: NotFound, Reason: "NoKey", Err: errors.New("the token has no AES key with this label and id")}
}

// checkSize refuses AES keys that are not 256 bits long. If the token does
// not report the size, the key is accepted.
func (h *hsm) checkSize(s pkcs11.SessionHandle, key pkcs11.ObjectHandle) error {
	attributes, err := h.module.ctx.GetAttributeValue(s, key, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, nil),
	})
	if err != nil || len(attributes) != 1 {
		return nil //nolint:nilerr // see above; a missing key fails when it is used
	}

	want := pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32) // a CK_ULONG, whose encoding depends on the machine
	if got := attributes[0].Value; len(got) == len(want.Value) && !bytes.Equal(got, want.Value) {
		return &Error{Kind: Invalid, Reason: "KeySize", Err: errors.New("the AES key is not 32 bytes long")}
	}

	return nil
}

//go:build pkcs11 && cgo

package kms_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// SoftHSM reads its configuration once per process, so all tests share a
// directory of tokens.
var hsmDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "softhsm")
	if err != nil {
		panic(err)
	}

	hsmDir = dir
	conf := "directories.tokendir = " + dir + "/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
	err = errors.Join(os.Mkdir(dir+"/tokens", 0o700), os.WriteFile(dir+"/softhsm2.conf", []byte(conf), 0o600),
		os.Setenv("SOFTHSM2_CONF", dir+"/softhsm2.conf"), os.Setenv("FAULTY_CONTROL", dir+"/control"))
	if err != nil {
		panic(err)
	}

	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

const testPIN = "918273645"

// softHSM returns the library, for changing tokens in tests, and its path.
func softHSM(t *testing.T) (ctx *pkcs11.Ctx, path string) {
	t.Helper()
	for _, path := range []string{
		"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/libsofthsm2.so",
		"/usr/local/lib/softhsm/libsofthsm2.so", "/opt/homebrew/lib/softhsm/libsofthsm2.so",
	} {
		if _, err := os.Stat(path); err != nil {
			continue
		}

		ctx := pkcs11.New(path)
		if ctx == nil {
			t.Fatalf("%s does not load", path)
		}
		if err := ctx.Initialize(); err != nil &&
			!errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
			t.Fatal(err)
		}

		return ctx, path
	}

	t.Skip("SoftHSM is not installed: apt-get install softhsm2")
	return nil, ""
}

// token is a token of SoftHSM.
type token struct {
	ctx    *pkcs11.Ctx
	module string
	label  string
}

// slot returns the token's current slot, which changes when SoftHSM is
// initialized again.
func (tok *token) slot(t *testing.T) uint {
	t.Helper()
	slots, err := tok.ctx.GetSlotList(true)
	must(t, err)
	for _, id := range slots {
		if info, err := tok.ctx.GetTokenInfo(id); err == nil && info.Label == tok.label {
			return id
		}
	}
	t.Fatalf("no slot has the token %q", tok.label)
	return 0
}

var tokens, keysMade atomic.Int64

func newToken(t *testing.T) *token {
	t.Helper()
	ctx, path := softHSM(t)
	slots, err := ctx.GetSlotList(true)
	must(t, err)
	tok := &token{ctx: ctx, module: path, label: fmt.Sprintf("token %d; ü", tokens.Add(1))}
	slot := slots[len(slots)-1]
	must(t, ctx.InitToken(slot, "so-pin-1", tok.label))
	s, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(t, err)
	must(t, ctx.Login(s, pkcs11.CKU_SO, "so-pin-1"))
	must(t, ctx.InitPIN(s, testPIN))
	must(t, ctx.CloseSession(s))

	return tok
}

// as runs do as the token's user, as another program would.
func (tok *token) as(t *testing.T, pin string, do func(s pkcs11.SessionHandle)) {
	t.Helper()
	s, err := tok.ctx.OpenSession(tok.slot(t), pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	must(t, err)
	if err := tok.ctx.Login(s, pkcs11.CKU_USER, pin); err != nil &&
		!errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		t.Fatal(err)
	}
	do(s)
	must(t, tok.ctx.CloseSession(s))
}

// makeKey creates an AES key from value in the token.
func (tok *token) makeKey(t *testing.T, label string, id, value []byte) {
	t.Helper()
	tok.as(t, testPIN, func(s pkcs11.SessionHandle) {
		_, err := tok.ctx.CreateObject(s, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE,
				pkcs11.CKK_AES),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE,
				true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
			pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT,
				true), pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, true),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_ID,
				id), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value),
		})

		must(t, err)
	})
}

// onKey runs do on the object with a label.
func (tok *token) onKey(t *testing.T, label string, do func(s pkcs11.SessionHandle, key pkcs11.ObjectHandle) error) {
	t.Helper()
	tok.as(t, testPIN, func(s pkcs11.SessionHandle) {
		must(t, tok.ctx.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}))
		keys, _, err := tok.ctx.FindObjects(s, 2)
		must(t, errors.Join(err, tok.ctx.FindObjectsFinal(s)))
		if len(keys) != 1 {
			t.Fatalf("%d keys of label %s", len(keys), label)
		}
		must(t, do(s, keys[0]))
	})
}

func (tok *token) set(t *testing.T, label string, attribute uint, value bool) {
	t.Helper()
	tok.onKey(t, label, func(s pkcs11.SessionHandle, key pkcs11.ObjectHandle) error {
		return tok.ctx.SetAttributeValue(s, key, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, value)})
	})
}

func (tok *token) remove(t *testing.T, label string) {
	t.Helper()
	tok.onKey(t, label, tok.ctx.DestroyObject)
}

func (tok *token) config(label string) kms.PKCS11Config {
	return kms.PKCS11Config{Module: tok.module, TokenLabel: tok.label, KeyLabel: label, PIN: testPIN}
}

// newHSMKey creates and opens a key in the token.
func newHSMKey(t *testing.T, tok *token) (w kms.Wrapper, label string) {
	t.Helper()
	label = fmt.Sprintf("key-%d", keysMade.Add(1))
	tok.makeKey(t, label, []byte{1}, kmstest.NewDEK())
	return openHSM(t, tok.config(label)), label
}

func openHSM(t *testing.T, cfg kms.PKCS11Config) kms.Wrapper {
	t.Helper()
	w, err := kms.NewPKCS11(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// hsmOpenError returns the error of opening a key, which must fail.
func hsmOpenError(t *testing.T, cfg kms.PKCS11Config) error {
	t.Helper()
	w, err := kms.NewPKCS11(t.Context(), cfg)
	if w != nil {
		t.Error("a key came with the error")
	}
	if err != nil && strings.Contains(err.Error(), cfg.PIN) {
		t.Errorf("the error has the PIN: %v", err)
	}
	return err
}

func TestPKCS11Contract(t *testing.T) {
	tok := newToken(t)
	kmstest.RunContract(t, func(t *testing.T) kms.Wrapper { w, _ := newHSMKey(t, tok); return w }, nil)
}

// Checks the form of a blob with Go's AES-GCM and the token's key.
func TestPKCS11BlobForm(t *testing.T) {
	tok, key := newToken(t), kmstest.NewDEK()
	tok.makeKey(t, "known", []byte{0xab, 1}, key)
	cfg := tok.config("known")
	cfg.KeyID = []byte{0xab, 1}
	w := openHSM(t, cfg)
	if want := "pkcs11:token=token%20" + tok.label[6:len(tok.label)-4] +
		"%3B%20%C3%BC;object=known;id=%AB%01"; w.KeyID() != want {
		t.Errorf("key id %s, want %s", w.KeyID(), want)
	}

	b := wrapLocal(t, w)
	block, _ := aes.NewCipher(key)
	aead, _ := cipher.NewGCM(block)
	aad := append([]byte("cmekproxy pkcs11 wrap v1\x01"), 0, 0, 0, 2)

	for _, s := range []string{"bucket", "b", "key", "k"} {
		aad = append(binary.BigEndian.AppendUint64(aad, uint64(len(s))), s...)
	}

	if len(b.blob) != 61 || b.blob[0] != 1 {
		t.Fatalf("%d bytes of version %d", len(b.blob), b.blob[0])
	}
	if got, err := aead.Open(nil, b.blob[1:13], b.blob[13:], aad); err != nil || !bytes.Equal(got, b.dek) {
		t.Errorf("not the documented form: %v", err)
	}

	bySlot := openHSM(t, kms.PKCS11Config{
		Module: tok.module, Slot: tok.slot(t), KeyLabel: "known", KeyID: []byte{0xab, 1}, PIN: testPIN,
	})
	if bySlot.KeyID() != w.KeyID() {
		t.Errorf("by its slot the key is %s", bySlot.KeyID())
	}

	b.check(t, bySlot)
}

// A blob of the DEK 0x01 to 0x20 under the key 0x20 to 0x3f, created from
// the specification by other software. It never changes.
const goldenHSMBlob = "01404142434445464748494a4bc356be855570c2035b385b2488445e62029c8e97e056b0c677e48f1c7df4d022908738b13d86b438e78f0eb42a7b8d0b"

func TestPKCS11Golden(t *testing.T) {
	tok := newToken(t)
	key, dek := make([]byte, 32), make([]byte, 32)
	for i := range key {
		key[i], dek[i] = byte(i+32), byte(i+1)
	}

	tok.makeKey(t, "golden", nil, key)
	blob, _ := hex.DecodeString(goldenHSMBlob)
	if got, err := openHSM(t, tok.config("golden")).Unwrap(t.Context(), blob, localContext); err != nil ||
		!bytes.Equal(got, dek) {
		t.Errorf("%x, %v", got, err)
	}
}

func TestPKCS11Revocation(t *testing.T) {
	tok := newToken(t)
	w, label := newHSMKey(t, tok)
	b := wrapLocal(t, w)

	revoked := func(name string, err error, want kms.Kind) {
		t.Helper()
		wantErrorKind(t, name, want, err)
		if !kms.IsRevoked(err) {
			t.Errorf("%s: not revoked", name)
		}
	}

	tok.set(t, label, pkcs11.CKA_DECRYPT, false)
	revoked("CKA_DECRYPT is false", unwrapError(t, w, b.blob), kms.Disabled)
	revoked("opened with CKA_DECRYPT false", hsmOpenError(t, tok.config(label)), kms.Disabled)
	tok.set(t, label, pkcs11.CKA_DECRYPT, true)
	b.check(t, w)
	tok.set(t, label, pkcs11.CKA_ENCRYPT, false)
	revoked("CKA_ENCRYPT is false", wrapError(t, w), kms.Disabled)
	b.check(t, w)
	tok.set(t, label, pkcs11.CKA_ENCRYPT, true)
	wrapLocal(t, w).check(t, w)

	tok.remove(t, label)
	revoked("deleted", unwrapError(t, w, b.blob), kms.NotFound)
	revoked("deleted", wrapError(t, w), kms.NotFound)
	revoked("opened after it was deleted", hsmOpenError(t, tok.config(label)), kms.NotFound)
	tok.makeKey(t, label, nil, kmstest.NewDEK())
	revoked("replaced", unwrapError(t, w, b.blob), kms.NotFound)

	revoked("replaced", wrapError(t, w), kms.NotFound)
}

// The other keys of a token still work after one was deleted.
func TestPKCS11KeysAreApart(t *testing.T) {
	tok := newToken(t)
	a, label := newHSMKey(t, tok)
	b, _ := newHSMKey(t, tok)
	blob := wrapLocal(t, b)
	tok.remove(t, label)
	wantErrorKind(t, "deleted", kms.NotFound, wrapError(t, a))
	blob.check(t, b)
}

func TestPKCS11WrongPIN(t *testing.T) {
	tok := newToken(t)
	tok.makeKey(t, "k", nil, kmstest.NewDEK())
	cfg := tok.config("k")
	cfg.PIN = "000000000"
	wantErrorKind(t, "wrong PIN", kms.Denied, hsmOpenError(t, cfg))
	err := hsmOpenError(t, cfg)
	wantErrorKind(t, "again", kms.Denied, err)

	if !strings.Contains(err.Error(), "refused this PIN;") {
		t.Errorf("again: %v", err)
	}
	openHSM(t, tok.config("k"))
}

// A PIN that changes while the proxy runs takes effect at the next login.
func TestPKCS11ChangedPIN(t *testing.T) {
	tok := newToken(t)
	w, label := newHSMKey(t, tok)
	b := wrapLocal(t, w)
	tok.as(t, testPIN, func(s pkcs11.SessionHandle) { must(t, tok.ctx.SetPIN(s, testPIN, "another-pin")) })
	must(t, tok.ctx.CloseAllSessions(tok.slot(t)))
	wantErrorKind(t, "unwrap", kms.Denied, unwrapError(t, w, b.blob))
	cfg := tok.config(label)
	cfg.PIN = "another-pin"
	b.check(t, openHSM(t, cfg))
}

func TestPKCS11SessionsAreReplaced(t *testing.T) {
	tok := newToken(t)
	w, _ := newHSMKey(t, tok)
	b := wrapLocal(t, w)
	must(t, tok.ctx.CloseAllSessions(tok.slot(t)))
	b.check(t, w)
	tok.as(t, testPIN, func(s pkcs11.SessionHandle) { must(t, tok.ctx.Logout(s)) })
	b.check(t, w)
	wrapLocal(t, w).check(t, w)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				b.check(t, w)
			}
		}
	})

	for range 20 { // the error is never that of a bad blob
		tok.as(t, testPIN, func(pkcs11.SessionHandle) {})
	}

	close(stop)
	wg.Wait()
}

func TestPKCS11TokenGone(t *testing.T) {
	tok := newToken(t)
	w, label := newHSMKey(t, tok)
	b := wrapLocal(t, w)
	cfg := tok.config(label)
	cfg.TokenLabel = "no such token"
	wantErrorKind(t, "no such token", kms.Unreachable, hsmOpenError(t, cfg))

	back := tok.takeAway(t)
	wantErrorKind(t, "token gone", kms.Unreachable, unwrapError(t, w, b.blob))
	wantErrorKind(t, "token gone", kms.Unreachable, wrapError(t, w))
	back()
}

// takeAway removes the token, and returns a function that restores it.
func (tok *token) takeAway(t *testing.T) (back func()) {
	t.Helper()
	dirs, err := filepath.Glob(hsmDir + "/tokens/*")
	must(t, err)

	i := slices.IndexFunc(dirs, func(dir string) bool {
		text, _ := os.ReadFile(dir + "/token.object")
		return bytes.Contains(text, []byte(tok.label))
	})
	if i < 0 {
		t.Fatal("the token's directory is not found")
	}

	away := hsmDir + "/away"
	must(t, os.Rename(dirs[i], away))

	return func() {
		t.Helper()
		must(t, os.Rename(away, dirs[i]))
	}
}

// eventuallyOpens checks that a blob can be unwrapped after a while.
func (b wrapped) eventuallyOpens(t *testing.T, name string, w kms.Wrapper) {
	t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var dek []byte
		if dek, err = w.Unwrap(t.Context(), b.blob, localContext); err == nil {
			if !bytes.Equal(dek, b.dek) {
				t.Errorf("%s: another DEK", name)
			}
			return
		}
	}

	t.Errorf("%s: never again: %v", name, err)
}

// eventuallyWraps wraps as soon as that succeeds.
func eventuallyWraps(t *testing.T, w kms.Wrapper) wrapped {
	t.Helper()
	dek := kmstest.NewDEK()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var blob []byte
		if blob, err = w.Wrap(t.Context(), dek, localContext); err == nil {
			return wrapped{dek, blob}
		}
	}

	t.Fatalf("never again: %v", err)
	return wrapped{}
}

// A token that was removed is found again, both by open keys and by one
// that could not be opened. Keys of another token of the same module work
// all the time.
func TestPKCS11TokenComesBack(t *testing.T) {
	other := newToken(t)
	tok := newToken(t)
	w, label := newHSMKey(t, tok)
	second, _ := newHSMKey(t, tok)
	stays, _ := newHSMKey(t, other)
	b, b2, b3 := wrapLocal(t, w), wrapLocal(t, second), wrapLocal(t, stays)

	for round := range 2 {
		back := tok.takeAway(t)
		for range 3 {
			wantErrorKind(t, "token gone", kms.Unreachable, unwrapError(t, w, b.blob))
			wantErrorKind(t, "token gone", kms.Unreachable, unwrapError(t, second, b2.blob))
			wantErrorKind(t, "opened without the token", kms.Unreachable, hsmOpenError(t, tok.config(label)))
			b3.check(t, stays)
			wrapLocal(t, stays).check(t, stays)
		}

		back()
		if round == 0 {
			b.eventuallyOpens(t, "token back", w)
		} else {
			eventuallyWraps(t, w).check(t, w)
			b.check(t, w)
		}

		b2.eventuallyOpens(t, "token back, its other key", second)
		wrapLocal(t, w).check(t, w)
		b3.check(t, stays)
		b.check(t, openHSM(t, tok.config(label)))
	}
}

// A restart of the module does not disturb calls in progress.
func TestPKCS11RestartUnderLoad(t *testing.T) {
	tok, control := faulty(t)
	w, _ := newHSMKey(t, tok)
	second, _ := newHSMKey(t, tok)
	b, b2 := wrapLocal(t, w), wrapLocal(t, second)

	for _, fault := range []string{"C_OpenSession 0xE0 once", "C_DecryptInit 0x190 once", "C_GetSlotList 0x190 once"} {
		must(t, tok.ctx.CloseAllSessions(tok.slot(t)))
		control(fault)
		var wg sync.WaitGroup

		for _, c := range []struct {
			b wrapped
			w kms.Wrapper
		}{{b, w}, {b2, second}} {
			for range 8 {
				wg.Go(func() { c.b.eventuallyOpens(t, fault, c.w) })
			}
		}

		wg.Wait()
		control("")
	}
}

func TestPKCS11Configuration(t *testing.T) {
	tok := newToken(t)
	tok.makeKey(t, "twin", []byte{1}, kmstest.NewDEK())
	tok.makeKey(t, "twin", []byte{2}, kmstest.NewDEK())
	tok.makeKey(t, "short", nil, kmstest.NewDEK()[:16])

	change := func(label string, f func(*kms.PKCS11Config)) kms.PKCS11Config {
		cfg := tok.config(label)
		f(&cfg)
		return cfg
	}

	for name, c := range map[string]struct {
		cfg  kms.PKCS11Config
		want kms.Kind
	}{
		"no key of the label":    {tok.config("none"), kms.NotFound},
		"two keys of the label":  {tok.config("twin"), kms.Internal},
		"no key of label and id": {change("twin", func(c *kms.PKCS11Config) { c.KeyID = []byte{3} }), kms.NotFound},
		"AES-128":                {tok.config("short"), kms.Invalid},
		"no module":              {change("twin", func(c *kms.PKCS11Config) { c.Module = "" }), kms.Invalid},
		"module is not there": {
			change("twin", func(c *kms.PKCS11Config) { c.Module = "/does/not/exist.so" }), kms.Invalid,
		},
		"module is no library": {change("twin", func(c *kms.PKCS11Config) { c.Module = "/etc/passwd" }), kms.Invalid},
		"neither label nor id": {change("", func(*kms.PKCS11Config) {}), kms.Invalid},
		"long label":           {change(strings.Repeat("ü", 100), func(*kms.PKCS11Config) {}), kms.Invalid},
		"no such slot": {
			change("twin", func(c *kms.PKCS11Config) { c.TokenLabel, c.Slot = "", 4711 }), kms.Unreachable,
		},
		"no PIN": {
			change("twin", func(c *kms.PKCS11Config) { c.PIN, c.KeyID = "", []byte{1} }), kms.NotFound,
		},
	} {
		if c.cfg.PIN == "" { // an empty PIN is in every string
			_, err := kms.NewPKCS11(t.Context(), c.cfg)
			wantErrorKind(t, name, c.want, err)
			continue
		}
		wantErrorKind(t, name, c.want, hsmOpenError(t, c.cfg))
	}

	byID := func(id byte) kms.Wrapper {
		return openHSM(t, change("twin", func(c *kms.PKCS11Config) { c.KeyID = []byte{id} }))
	}

	one, two := byID(1), byID(2)
	wantErrorKind(t, "of the twin", kms.InvalidCiphertext, unwrapError(t, two, wrapLocal(t, one).blob))
}

// faulty builds testdata/pkcs11/faulty.c. It returns a token behind it, and
// a function that controls it.
func faulty(t *testing.T) (tok *token, control func(string)) {
	t.Helper()
	tok = newToken(t)
	t.Setenv("FAULTY_TARGET", tok.module) // read when the module is loaded
	headers, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	must(t, err)
	tok.module = filepath.Join(hsmDir, "faulty.so")

	if _, err := os.Stat(tok.module); err != nil {
		if out, err := exec.Command("cc", "-shared", "-fPIC", "-Wall", "-Werror", "-I",
			strings.TrimSpace(string(headers)),
			"-o", tok.module, "testdata/pkcs11/faulty.c", "-ldl").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}

	path := os.Getenv("FAULTY_CONTROL")
	control = func(text string) {
		t.Helper()
		_ = os.Remove(path)
		if text != "" { // written atomically, because the module may be reading
			must(t, os.WriteFile(path+".new", []byte(text), 0o600))
			must(t, os.Rename(path+".new", path))
		}
	}

	t.Cleanup(func() { control("") })
	return tok, control
}

func TestPKCS11ReturnValues(t *testing.T) {
	tok, control := faulty(t)
	w, _ := newHSMKey(t, tok)
	b := wrapLocal(t, w)

	for _, row := range []struct {
		fault  string
		unwrap kms.Kind // -1 means success
		reason string
	}{
		// Errors that a new session cures.
		{"C_DecryptInit 0xB3 once", -1, ""}, // CKR_SESSION_HANDLE_INVALID
		{"C_DecryptInit 0xB0 once", -1, ""}, // CKR_SESSION_CLOSED
		{"C_DecryptInit 0x101 once", -1, ""},
		{"C_DecryptInit 0x32 once", -1, ""},
		{"C_DecryptInit 0x60 once", -1, ""},
		{"C_Decrypt 0x32 once", -1, ""},
		{"C_DecryptInit 0x90 once", -1, ""},
		// Errors that it does not cure.
		{"C_DecryptInit 0xB3 always", kms.Unreachable, "CKR_SESSION_HANDLE_INVALID"},
		{"C_DecryptInit 0x101 always", kms.Unreachable, "CKR_USER_NOT_LOGGED_IN"},
		{"C_DecryptInit 0x32 always", kms.Unreachable, "CKR_DEVICE_REMOVED"},
		{"C_DecryptInit 0x30 always", kms.Unreachable, "CKR_DEVICE_ERROR"},
		{"C_DecryptInit 0xE0 always", kms.Unreachable, "CKR_TOKEN_NOT_PRESENT"},
		{"C_DecryptInit 0x60 always", kms.NotFound, "CKR_KEY_HANDLE_INVALID"},
		{"C_DecryptInit 0x82 always", kms.NotFound, "CKR_OBJECT_HANDLE_INVALID"},
		{"C_DecryptInit 0x68 always", kms.Disabled, "CKR_KEY_FUNCTION_NOT_PERMITTED"},
		{"C_DecryptInit 0x70 always", kms.Invalid, "CKR_MECHANISM_INVALID"},
		{"C_DecryptInit 0x80000001 always", kms.Internal, "CKR 0x80000001"},
		{"C_Decrypt 0x40 once", kms.InvalidCiphertext, "CKR_ENCRYPTED_DATA_INVALID"},
		{"C_Decrypt 0x42 once", kms.InvalidCiphertext, "CKR 0x42"},
		{"C_Decrypt 0x5 once", kms.InvalidCiphertext, ""}, // the key is intact, so the blob is bad
		{"C_Decrypt 0x5 always", kms.Unreachable, "CKR_GENERAL_ERROR"},
		{"C_Decrypt 0x30 always", kms.Unreachable, "CKR_DEVICE_ERROR"},
		// Errors of opening a session.
		{"C_OpenSession 0xB1 always", kms.Throttled, "CKR_SESSION_COUNT"},
		{"C_OpenSession 0x30 always", kms.Unreachable, "CKR_DEVICE_ERROR"},
		{"C_GetSlotList 0x5 always", kms.Unreachable, "CKR_GENERAL_ERROR"},
		{"C_Login 0x100 once", -1, ""}, // after another user's login and logout, the key is not deleted but private
		{"C_Login 0x100 always", kms.Unreachable, "CKR_USER_NOT_LOGGED_IN"},
		{"C_Login 0xA4 always", kms.Denied, "CKR_PIN_LOCKED"},
		{"C_Login 0xA3 always", kms.Denied, "CKR_PIN_EXPIRED"},
	} {
		if !strings.HasPrefix(row.fault, "C_Decrypt") {
			must(t, tok.ctx.CloseAllSessions(tok.slot(t)))
		}

		control(row.fault)
		got, err := w.Unwrap(t.Context(), b.blob, localContext)
		control("")
		e, _ := errors.AsType[*kms.Error](err)
		switch {
		case row.unwrap < 0:
			if err != nil || !bytes.Equal(got, b.dek) {
				t.Errorf("%s: %v", row.fault, err)
			}
		case e == nil || e.Kind != row.unwrap || e.Reason != row.reason || e.Op != "unwrap" || got != nil:
			t.Errorf("%s: got %v, want %v (%s)", row.fault, err, row.unwrap, row.reason)
		}

		b.check(t, w)
	}
}

// A token that insists on choosing the nonce may do so. A nonce of zeros is
// refused.
func TestPKCS11NonceOfTheToken(t *testing.T) {
	tok, control := faulty(t)
	plain, _ := newHSMKey(t, tok)
	control("nonce")
	w, label := newHSMKey(t, tok)
	a, b := wrapLocal(t, w), wrapLocal(t, w)
	if bytes.Equal(a.blob[1:13], b.blob[1:13]) || bytes.Equal(a.blob[1:13], make([]byte, 12)) {
		t.Errorf("nonces %x and %x", a.blob[1:13], b.blob[1:13])
	}

	a.check(t, w)
	b.check(t, w)
	wrapLocal(t, plain).check(t, plain)
	control("zeros")
	wantErrorKind(t, "nonce of zeros", kms.Internal, wrapError(t, w))

	wantErrorKind(t, "nonce of zeros", kms.Internal, hsmOpenError(t, tok.config(label)))
}

// If a module hangs, callers wait until their deadlines or cancellation,
// and the number of goroutines is limited.
func TestPKCS11Hangs(t *testing.T) {
	tok, control := faulty(t)
	_, label := newHSMKey(t, tok)
	cfg := tok.config(label)
	cfg.Timeout = time.Minute // not caused by the callers
	w := openHSM(t, cfg)
	b := wrapLocal(t, w)
	before := runtime.NumGoroutine()
	control("C_DecryptInit hang")
	const callers = 20
	var late, canceled sync.WaitGroup
	giveUp, cancel := context.WithCancel(t.Context())
	defer cancel()

	for range callers {
		late.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_, err := w.Unwrap(ctx, b.blob, localContext)
			wantErrorKind(t, "deadline", kms.Unreachable, err)
		})

		canceled.Go(func() {
			_, err := w.Unwrap(giveUp, b.blob, localContext)
			wantErrorKind(t, "given up", kms.Canceled, err)
		})
	}

	late.Wait()
	cancel()
	canceled.Wait()
	left := runtime.NumGoroutine() - before
	for end := time.Now().Add(5 * time.Second); left > 16 &&
		time.Now().Before(end); left = runtime.NumGoroutine() - before {
		time.Sleep(10 * time.Millisecond) // some are still ending
	}

	if left > 16 {
		t.Errorf("%d goroutines are left behind", left)
	}

	cfg.Timeout = 100 * time.Millisecond
	wantErrorKind(t, "opened meanwhile", kms.Unreachable, hsmOpenError(t, cfg))
	control("")
	b.check(t, w)
	wrapLocal(t, w).check(t, w)
}

package kms_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// The provider wrote these: the files in testdata/local, and for each file
// a blob of the DEK 0x01 to 0x20 under its newest version. The first one is
// older than versions. They never change.
const (
	goldenID   = "local:27b0053ddc947ad4"
	goldenBlob = "01635ed84aa1206dd8343400ec0ad382a949beef16a0d2104725aa24654ff3dada32f35dfca35d104f73edd1f437f1a7cc0d0a287abdeb4755cf35ccfc"

	goldenID2   = "local:9b497d645d299b88"
	goldenBlob2 = "02000000024119e3b1ad54efcd4346f2aa3cc2edf7158c073c042329c0782888f586a67ecb13265ce3a54b490b80840eec0de6571f66a2856a10702f4f0b576890"
)

// goldenLocal opens a copy of the golden key file.
func goldenLocal(t *testing.T, name string) (w *kms.Local, path string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "local", name))
	if err != nil {
		t.Fatal(err)
	}

	path = filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(path, text, 0o600))
	w, err = kms.NewLocal(path)
	if err != nil {
		t.Fatal(err)
	}

	return w, path
}

func checkGolden(t *testing.T, w kms.Wrapper, id, hexBlob string) {
	t.Helper()
	if w.KeyID() != id {
		t.Errorf("key id %q", w.KeyID())
	}

	want := make([]byte, 32)
	for i := range want {
		want[i] = byte(i + 1)
	}

	blob, _ := hex.DecodeString(hexBlob)
	got, err := w.Unwrap(t.Context(), blob, kmstest.Context("bucket", "a//b/ü"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the golden blob gives %x, %v", got, err)
	}
	if _, err := w.Unwrap(t.Context(), blob, kmstest.Context("bucket", "a/b/ü")); err == nil {
		t.Error("the golden blob unwraps for another object")
	}
}

func TestLocalContractOfTheOlderForm(t *testing.T) {
	kmstest.RunContract(t, func(t *testing.T) kms.Wrapper {
		path := filepath.Join(t.TempDir(), "key")
		must(t, os.WriteFile(path, oneLine(kmstest.NewDEK()), 0o600))
		w, err := kms.NewLocal(path)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}, nil)
}

func TestLocalContractAfterRotation(t *testing.T) {
	kmstest.RunContract(t, func(t *testing.T) kms.Wrapper {
		w, path := newLocal(t)
		rotate(t, path)
		rotate(t, path)
		return w
	}, nil)
}

// A file of the older form can be read, and its blobs have the older form
// too.
func TestLocalGolden(t *testing.T) {
	w, path := goldenLocal(t, "v1.key")
	checkGolden(t, w, goldenID, goldenBlob)
	old := wrapLocal(t, w)
	if len(old.blob) != 61 || old.blob[0] != 1 {
		t.Errorf("a new blob has %d bytes and form %d", len(old.blob), old.blob[0])
	}

	before, _ := os.ReadFile(path)
	if golden, _ := os.ReadFile("testdata/local/v1.key"); !bytes.Equal(before, golden) {
		t.Error("the file was changed by its use")
	}

	rotate(t, path)
	checkGolden(t, w, goldenID, goldenBlob)
	old.check(t, w)
	after := wrapLocal(t, w)
	if !bytes.HasPrefix(after.blob, []byte{2, 0, 0, 0, 2}) {
		t.Errorf("after a rotation a blob begins with %x", after.blob[:5])
	}

	again, err := kms.NewLocal(path)
	if err != nil {
		t.Fatal(err)
	}

	checkGolden(t, again, goldenID, goldenBlob)
	after.check(t, again)

	newer, path := goldenLocal(t, "v2.key")
	checkGolden(t, newer, goldenID2, goldenBlob2)
	rotate(t, path)
	checkGolden(t, newer, goldenID2, goldenBlob2)
}

// The version in a blob is authenticated: each version opens only its own
// blobs.
func TestLocalVersionsAreApart(t *testing.T) {
	w, path := newLocal(t)
	first := wrapLocal(t, w)
	rotate(t, path)
	second := wrapLocal(t, w)
	first.check(t, w)
	second.check(t, w)

	if id := w.KeyID(); id != reopen(t, path).KeyID() {
		t.Error("a rotation changed the key's id")
	}

	for name, blob := range map[string][]byte{
		"first as second": append([]byte{2, 0, 0, 0, 2}, first.blob[5:]...),
		"second as first": append([]byte{2, 0, 0, 0, 1}, second.blob[5:]...),
		"older form":      append([]byte{1}, first.blob[5:]...),
		"version 0":       append([]byte{2, 0, 0, 0, 0}, first.blob[5:]...),
		"version 3":       append([]byte{2, 0, 0, 0, 3}, first.blob[5:]...),
		"version 2^32-1":  append([]byte{2, 255, 255, 255, 255}, first.blob[5:]...),
	} {
		wantErrorKind(t, name, kms.InvalidCiphertext, unwrapError(t, w, blob))
	}

	other, otherPath := newLocal(t) // another file's rotated key, with the same version numbers
	rotate(t, otherPath)
	wantErrorKind(t, "another key", kms.InvalidCiphertext, unwrapError(t, other, second.blob))
}

func TestLocalStates(t *testing.T) {
	w, path := newLocal(t)
	first := wrapLocal(t, w)
	rotate(t, path)
	second := wrapLocal(t, w)

	setState(t, path, 1, kms.LocalKeyDisabled)
	wantErrorKind(t, "of the disabled version", kms.Denied, unwrapError(t, w, first.blob))
	second.check(t, w)
	setState(t, path, 1, kms.LocalKeyEnabled)
	first.check(t, w)

	setState(t, path, 2, kms.LocalKeyDisabled)
	wantErrorKind(t, "of the newest version, disabled", kms.Denied, unwrapError(t, w, second.blob))
	third := wrapLocal(t, w)
	if third.blob[4] != 1 {
		t.Errorf("with version 2 disabled, version %d wraps", third.blob[4])
	}

	third.check(t, w)

	setState(t, path, 1, kms.LocalKeyDisabled)
	wantErrorKind(t, "no version is enabled", kms.Disabled, unwrapError(t, w, first.blob))
	wantErrorKind(t, "no version is enabled", kms.Disabled, wrapError(t, w))

	setState(t, path, 1, kms.LocalKeyDestroyed)
	wantErrorKind(t, "one is destroyed, one disabled", kms.Disabled, unwrapError(t, w, first.blob))
	setState(t, path, 2, kms.LocalKeyEnabled)
	wantErrorKind(t, "of the destroyed version", kms.Denied, unwrapError(t, w, first.blob))
	second.check(t, w)

	if reopen(t, path).KeyID() != w.KeyID() {
		t.Error("without its first version the key has another id")
	}

	for _, state := range []kms.LocalKeyState{kms.LocalKeyEnabled, kms.LocalKeyDisabled} {
		if err := kms.ChangeLocalKeyFile(path,
			func(f *kms.LocalKeyFile) error { return f.SetState(1, state) }); err == nil {
			t.Errorf("a destroyed version became %s", state)
		}
	}

	setState(t, path, 2, kms.LocalKeyDestroyed)
	wantErrorKind(t, "all are destroyed", kms.NotFound, unwrapError(t, w, second.blob))
	wantErrorKind(t, "all are destroyed", kms.NotFound, wrapError(t, w))
	rotate(t, path)
	wrapLocal(t, w).check(t, w)

	wantErrorKind(t, "after a rotation", kms.Denied, unwrapError(t, w, second.blob))
}

func TestLocalKeyDisabled(t *testing.T) {
	w, path := newLocal(t)
	blob := wrapLocal(t, w)

	disable := func(disabled bool) {
		t.Helper()
		must(t, kms.ChangeLocalKeyFile(path, func(f *kms.LocalKeyFile) error { f.Disabled = disabled; return nil }))
	}

	disable(true)
	wantErrorKind(t, "unwrap", kms.Disabled, unwrapError(t, w, blob.blob))
	wantErrorKind(t, "wrap", kms.Disabled, wrapError(t, w))
	rotate(t, path)
	wantErrorKind(t, "wrap after a rotation", kms.Disabled, wrapError(t, w))
	wantErrorKind(t, "opened while disabled", kms.Disabled, wrapError(t, reopen(t, path)))
	disable(false)

	blob.check(t, w)
}

// The key of a destroyed version is removed from the file.
func TestLocalDestroyed(t *testing.T) {
	key := bytes.Repeat([]byte("0123"), 8)
	path := filepath.Join(t.TempDir(), "key")
	must(t, kms.ImportLocalKeyFile(path, key))
	const encoded = "MDEyMzAxMjMwMTIzMDEyMzAxMjMwMTIzMDEyMzAxMjM="
	if text, _ := os.ReadFile(path); !bytes.Contains(text, []byte(encoded)) {
		t.Fatal("the file does not hold the imported key")
	}

	rotate(t, path)
	setState(t, path, 1, kms.LocalKeyDestroyed)
	text, _ := os.ReadFile(path)
	if bytes.Contains(text, []byte(encoded)) || !bytes.Contains(text, []byte("\nversion 1 destroyed 20")) {
		t.Error("the destroyed version is still there, or its number is not")
	}
}

func TestImportedKeysThatAreRefused(t *testing.T) {
	for name, key := range map[string][]byte{
		"none": nil, "31 bytes": bytes.Repeat([]byte("a1"), 16)[1:],
		"33 bytes": append(bytes.Repeat([]byte("a1"), 16), 'b'),
		"zeros":    make([]byte, 32), "one byte": bytes.Repeat([]byte{7}, 32),
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := kms.ImportLocalKeyFile(path, key); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: a file was left behind", name)
		}
	}
}

func TestLocalChangeKeepsTheFile(t *testing.T) {
	w, path := newLocal(t)
	before, _ := os.ReadFile(path)
	no := errors.New("no")
	change := func(f *kms.LocalKeyFile) error { _, _ = f.Rotate(time.Now()); return no }
	if err := kms.ChangeLocalKeyFile(path, change); err != no { //nolint:errorlint // returned unchanged
		t.Errorf("got %v", err)
	}

	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("a change that failed was written")
	}

	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(path, link))
	rotate(t, link)

	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the link is %v now, %v", info.Mode(), err)
	}
	if wrapLocal(t, w).blob[4] != 2 {
		t.Error("the file behind the link was not changed")
	}

	if os.Getuid() == 0 {
		must(t, os.Chown(path, 12345, 23456))
	}

	must(t, os.Chmod(path, 0o400))
	if os.Getuid() == 0 { // others may not write to such a file
		rotate(t, path)
		info, err := os.Stat(path)
		must(t, err)
		if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 12345 || stat.Gid != 23456 || info.Mode().Perm() != 0o400 {
			t.Errorf("owner %d:%d, mode %v", stat.Uid, stat.Gid, info.Mode())
		}
	}

	if names, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

func TestLocalChangeRefusesWhatOpeningRefuses(t *testing.T) {
	_, path := newLocal(t)
	change := func(path string) error {
		return kms.ChangeLocalKeyFile(path, func(*kms.LocalKeyFile) error { return nil })
	}

	must(t, change(path))
	must(t, os.Chmod(path, 0o604))
	wantErrorKind(t, "open to all users", kms.Denied, change(path))
	_, err := kms.ReadLocalKeyFile(path)
	wantErrorKind(t, "open to all users", kms.Denied, err)
	must(t, os.Chmod(path, 0o600))
	must(t, os.WriteFile(path, []byte("nonsense"), 0o600))
	wantErrorKind(t, "nonsense", kms.NotFound, change(path))
	must(t, os.Remove(path))
	wantErrorKind(t, "no file", kms.NotFound, change(path))
	_, err = kms.ReadLocalKeyFile(path)

	wantErrorKind(t, "no file", kms.NotFound, err)
}

// Concurrent changes of a file are serialized, so no version is lost.
// Readers always see a complete file.
func TestLocalChangesAtOnce(t *testing.T) {
	w, path := newLocal(t)
	blob := wrapLocal(t, w)
	const changers, each = 8, 5
	stop := make(chan struct{})
	var changing, reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				blob.check(t, w)
			}
		}
	})

	for range changers {
		changing.Go(func() {
			for range each {
				rotate(t, path)
			}
		})
	}

	changing.Wait()
	close(stop)
	reading.Wait()
	file, err := kms.ReadLocalKeyFile(path)
	must(t, err)

	if len(file.Versions) != 1+changers*each {
		t.Errorf("%d versions are left of %d", len(file.Versions), 1+changers*each)
	}
}

func TestLocalVersionsAreBounded(t *testing.T) {
	w, path := newLocal(t)
	blob := wrapLocal(t, w)

	fill := func(f *kms.LocalKeyFile) error {
		for len(f.Versions) < 1000 {
			if _, err := f.Rotate(time.Now()); err != nil {
				return err
			}
		}
		return nil
	}

	must(t, kms.ChangeLocalKeyFile(path, fill))
	blob.check(t, w)
	wrapLocal(t, w).check(t, w)
	err := kms.ChangeLocalKeyFile(path, func(f *kms.LocalKeyFile) error { _, err := f.Rotate(time.Now()); return err })
	if err == nil || !strings.Contains(err.Error(), "at most 1000") {
		t.Errorf("version 1001: %v", err)
	}
}

// wrapped is a DEK with a blob of it.
type wrapped struct{ dek, blob []byte }

var localContext = kmstest.Context("b", "k")

func wrapLocal(t *testing.T, w kms.Wrapper) wrapped {
	t.Helper()
	dek := kmstest.NewDEK()
	blob, err := w.Wrap(t.Context(), dek, localContext)
	if err != nil {
		t.Fatal(err)
	}
	return wrapped{dek, blob}
}

func (b wrapped) check(t *testing.T, w kms.Wrapper) {
	t.Helper()
	if got, err := w.Unwrap(t.Context(), b.blob, localContext); err != nil || !bytes.Equal(got, b.dek) {
		t.Errorf("the blob %x does not unwrap: %v", b.blob[:5], err)
	}
}

func wrapError(t *testing.T, w kms.Wrapper) error {
	t.Helper()
	_, err := w.Wrap(t.Context(), kmstest.NewDEK(), localContext)
	return err
}

func unwrapError(t *testing.T, w kms.Wrapper, blob []byte) error {
	t.Helper()
	dek, err := w.Unwrap(t.Context(), blob, localContext)
	if dek != nil {
		t.Error("a DEK came with the error")
	}
	return err
}

func wantErrorKind(t *testing.T, name string, want kms.Kind, err error) {
	t.Helper()
	if e, ok := errors.AsType[*kms.Error](err); !ok || e.Kind != want || e.Op == "" || e.KeyID == "" {
		t.Errorf("%s: got %v, want %v", name, err, want)
	}
}

func rotate(t *testing.T, path string) {
	t.Helper()
	if err := kms.ChangeLocalKeyFile(path,
		func(f *kms.LocalKeyFile) error { _, err := f.Rotate(time.Now()); return err }); err != nil {
		t.Error(err)
	}
}

func setState(t *testing.T, path string, version int, state kms.LocalKeyState) {
	t.Helper()
	must(t, kms.ChangeLocalKeyFile(path, func(f *kms.LocalKeyFile) error { return f.SetState(version, state) }))
}

func reopen(t *testing.T, path string) *kms.Local {
	t.Helper()
	w, err := kms.NewLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

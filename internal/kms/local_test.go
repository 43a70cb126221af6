package kms_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

const localPrefix = "cmekproxy-local-key-v1:"

func TestLocalContract(t *testing.T) {
	kmstest.RunContract(t, func(t *testing.T) kms.Wrapper { w, _ := newLocal(t); return w }, nil)
}

func newLocal(t *testing.T) (w *kms.Local, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "key")
	if err := kms.CreateLocalKeyFile(path); err != nil {
		t.Fatal(err)
	}
	w, err := kms.NewLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	return w, path
}

func TestCreateLocalKeyFile(t *testing.T) {
	w, path := newLocal(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}

	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^cmekproxy-local-key-v2
id local:[0-9a-f]{16}
state enabled
version 1 enabled 20[0-9T:-]{17}Z [A-Za-z0-9+/]{43}=
checksum [0-9a-f]{64}
$`).Match(before) {
		t.Error("the file is not of the documented form")
	}

	if !regexp.MustCompile(`^local:[0-9a-f]{16}$`).MatchString(w.KeyID()) {
		t.Errorf("key id %q", w.KeyID())
	}
	if err := kms.CreateLocalKeyFile(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second key over the first: %v", err)
	}

	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the key was overwritten")
	}
	if err := kms.CreateLocalKeyFile(filepath.Join(path, "key")); err == nil {
		t.Error("a key below a file")
	}
}

func TestLocalKeyFilesThatAreRefused(t *testing.T) {
	encode := base64.StdEncoding.EncodeToString
	good := localPrefix + encode(bytes.Repeat([]byte{1}, 32)) + "\n"
	for _, c := range []struct {
		name, content string
		mode          fs.FileMode
		want          kms.Kind
	}{
		{"others may read", good, 0o604, kms.Denied},
		{"others may write", good, 0o602, kms.Denied},
		{"others may execute", good, 0o441, kms.Denied},
		{"empty", "", 0o600, kms.NotFound},
		{"no prefix", encode(bytes.Repeat([]byte{1}, 32)), 0o600, kms.NotFound},
		{"other version", strings.Replace(good, "v1", "v2", 1), 0o600, kms.NotFound},
		{"prefix only", localPrefix, 0o600, kms.NotFound},
		{"31 bytes", localPrefix + encode(bytes.Repeat([]byte{1}, 31)), 0o600, kms.NotFound},
		{"33 bytes", localPrefix + encode(bytes.Repeat([]byte{1}, 33)), 0o600, kms.NotFound},
		{"all zero", localPrefix + encode(make([]byte, 32)), 0o600, kms.NotFound},
		{"two lines", good + good, 0o600, kms.NotFound},
		{"line feed within", good[:40] + "\n" + good[40:], 0o600, kms.NotFound},
		{"leading space", " " + good, 0o600, kms.NotFound},
		{"carriage return", strings.TrimSuffix(good, "\n") + "\r\n", 0o600, kms.NotFound},
		{"no padding", strings.TrimSuffix(good, "=\n"), 0o600, kms.NotFound},
		{"unused bits set", localPrefix + strings.Repeat("A", 42) + "F=", 0o600, kms.NotFound},
		{"hexadecimal", localPrefix + strings.Repeat("01", 32), 0o600, kms.NotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}

			_, err := kms.NewLocal(path)
			if e, ok := errors.AsType[*kms.Error](err); !ok || e.Kind != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "AQEBAQ") {
				t.Errorf("the error quotes the key: %v", err)
			}
		})
	}

	if _, err := kms.NewLocal(t.TempDir()); !kms.IsRevoked(err) {
		t.Errorf("a directory for a key: %v", err)
	}

	path := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(path, []byte(strings.TrimSuffix(good, "\n")), 0o400))

	for _, mode := range []fs.FileMode{0o400, 0o440, 0o640, 0o660} { // the last three: Kubernetes with an fsGroup
		must(t, os.Chmod(path, mode))
		if _, err := kms.NewLocal(path); err != nil {
			t.Errorf("mode %04o, without line feed: %v", mode, err)
		}
	}
}

func TestLocalRevocation(t *testing.T) {
	w, path := newLocal(t)
	dek, ec := kmstest.NewDEK(), kmstest.Context("b", "k")
	blob, err := w.Wrap(t.Context(), dek, ec)
	if err != nil {
		t.Fatal(err)
	}

	check := func(name string, want kms.Kind) {
		t.Helper()
		_, unwrapErr := w.Unwrap(t.Context(), blob, ec)
		_, wrapErr := w.Wrap(t.Context(), dek, ec)
		for _, err := range []error{unwrapErr, wrapErr} {
			if e, ok := errors.AsType[*kms.Error](err); !ok || e.Kind != want || !kms.IsRevoked(err) {
				t.Errorf("%s: got %v, want %v", name, err, want)
			}
		}
	}

	away := path + ".away"
	must(t, os.Rename(path, away))
	check("moved away", kms.NotFound)
	must(t, kms.CreateLocalKeyFile(path))
	check("replaced", kms.NotFound)
	must(t, os.WriteFile(path, []byte("half a li"), 0o600))
	check("damaged", kms.NotFound)
	must(t, os.Rename(away, path))
	must(t, os.Chmod(path, 0o644))
	check("opened to others", kms.Denied)
	must(t, os.Chmod(path, 0o600))

	if got, err := w.Unwrap(t.Context(), blob, ec); err != nil || !bytes.Equal(got, dek) {
		t.Errorf("the key is back, but: %v", err)
	}
}

// A blob is also bound to the key id, which is not visible in it. This test
// checks the blob's form.
func TestLocalBlobForm(t *testing.T) {
	w, _ := newLocal(t)
	blob, err := w.Wrap(t.Context(), kmstest.NewDEK(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(blob) != 65 || !bytes.HasPrefix(blob, []byte{2, 0, 0, 0, 1}) {
		t.Errorf("%d bytes that begin with %x; want 65, and 0200000001", len(blob), blob[:5])
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// importKey is a key for tests; in base64 it has characters in which the two
// alphabets differ.
var importKey, _ = hex.DecodeString("fbefbe000102030405060708090a0b0c0d0e0f101112131415161718191afffe")

// proxyKeys runs `cmekproxy keys` and returns what it prints. No command ever
// prints a key.
func proxyKeys(t *testing.T, wantCode int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if code := run(t.Context(), append([]string{"keys"}, args...), &out, &out); code != wantCode {
		t.Errorf("%q: exit code %d, want %d, printed %q", args, code, wantCode, out.String())
	}
	for _, secret := range []string{"fbefbe", "FBEFBE", "AAEC", "++++", string(importKey[:3]), "horse"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q printed key material: %q", args, out.String())
		}
	}
	return out.String()
}

func newKeyFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	proxyKeys(t, 0, "new", path)
	return path
}

func TestKeysLife(t *testing.T) {
	path := newKeyFile(t)
	w, err := kms.NewLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	ec := kms.EncryptionContext{"bucket": "b", "key": "k"}
	blob, err := w.Wrap(t.Context(), importKey, ec)
	if err != nil {
		t.Fatal(err)
	}
	// Each step is made while w is in use, as by a proxy that runs; reads says
	// what becomes of the first blob.
	for _, step := range []struct {
		args         []string
		states       string
		reads, wraps kms.Kind // -1: it works
	}{
		{[]string{"list"}, "enabled:/enabled", -1, -1},
		{[]string{"rotate"}, "enabled:/enabled/enabled", -1, -1},
		{[]string{"disable", "--version", "1"}, "enabled:/disabled/enabled", kms.Denied, -1},
		{[]string{"enable", "--version", "1"}, "enabled:/enabled/enabled", -1, -1},
		{[]string{"disable", "--version", "2"}, "enabled:/enabled/disabled", -1, -1},
		{[]string{"disable"}, "disabled:/enabled/disabled", kms.Disabled, kms.Disabled},
		{[]string{"rotate"}, "disabled:/enabled/disabled/enabled", kms.Disabled, kms.Disabled},
		{[]string{"enable"}, "enabled:/enabled/disabled/enabled", -1, -1},
		{[]string{"destroy", "--version", "1", "--yes"}, "enabled:/destroyed/disabled/enabled", kms.Denied, -1},
		{[]string{"destroy", "--yes", "--version=3"}, "enabled:/destroyed/disabled/destroyed", kms.Disabled, kms.Disabled},
		{[]string{"list"}, "enabled:/destroyed/disabled/destroyed", kms.Disabled, kms.Disabled},
	} {
		out := proxyKeys(t, 0, append(step.args, path)...)
		lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		states := strings.TrimPrefix(lines[0], w.KeyID()+"  ") + ":"
		for _, line := range lines[2:] {
			states += "/" + strings.Fields(line)[1]
		}
		if states != step.states {
			t.Errorf("%q: printed %q, want %s", step.args, out, step.states)
		}
		_, err := w.Unwrap(t.Context(), blob, ec)
		checkOutcome(t, step.args, err, step.reads)
		_, err = w.Wrap(t.Context(), importKey, ec)
		checkOutcome(t, step.args, err, step.wraps)
	}
}

func checkOutcome(t *testing.T, args []string, err error, want kms.Kind) {
	t.Helper()
	if e, _ := err.(*kms.Error); want < 0 && err != nil || want >= 0 && (e == nil || e.Kind != want) { //nolint:errorlint // the type is the contract
		t.Errorf("%q: %v, want %v", args, err, want)
	}
}

func TestKeysList(t *testing.T) {
	path := newKeyFile(t)
	proxyKeys(t, 0, "rotate", path)
	out := proxyKeys(t, 0, "list", path)
	if !regexp.MustCompile(`^local:[0-9a-f]{16}  enabled
VERSION  STATE    CREATED
1        enabled  20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ
2        enabled  20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ
$`).MatchString(out) {
		t.Errorf("printed %q", out)
	}
	older := filepath.Join(t.TempDir(), "older")
	line := "cmekproxy-local-key-v1:" + base64.StdEncoding.EncodeToString(importKey) + "\n"
	if err := os.WriteFile(older, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := proxyKeys(t, 0, "list", older); !strings.Contains(out, "1        enabled  unknown\n") {
		t.Errorf("a file of the older form: printed %q", out)
	}
	if after, _ := os.ReadFile(older); string(after) != line {
		t.Error("list changed the file")
	}
}

func TestKeysCommandLines(t *testing.T) {
	path := newKeyFile(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 0, "cmekproxy keys [command]"},
		{[]string{"-h"}, 0, "destroy"},
		{[]string{"import", "-h"}, 0, "-from"},
		{[]string{"delete", path}, 2, `unknown command "delete"`},
		{[]string{"new"}, 2, "keys new: want one FILE, got 0"},
		{[]string{"rotate", path, path}, 2, "want one FILE, got 2"},
		{[]string{"rotate", ""}, 2, "FILE is empty"},
		{[]string{"rotate", path, "--version", "1"}, 2, "version"},
		{[]string{"new", path}, 1, "file exists"},
		{[]string{"list", path + ".none"}, 1, "no such file"},
		{[]string{"rotate", path + ".none"}, 1, "no such file"},
		{[]string{"disable", path, "--version", "0"}, 2, "not the number of a version"},
		{[]string{"disable", path, "--version", "one"}, 2, "not the number of a version"},
		{[]string{"disable", path, "--version", "2"}, 1, "there is no version 2"},
		{[]string{"destroy", path}, 2, "--version N is missing"},
		{[]string{"destroy", path, "--yes"}, 2, "--version N is missing"},
		{[]string{"destroy", path, "--version", "1"}, 2, "say --yes"},
		{[]string{"destroy", path, "--version", "2", "--yes"}, 1, "there is no version 2"},
		{[]string{"import", path, "--from", path + ".none"}, 1, "no such file"},
		{[]string{"import", filepath.Join(t.TempDir(), "new"), hex.EncodeToString(importKey[:1])}, 2, "want one FILE"},
	} {
		if out := proxyKeys(t, row.code, row.args...); !strings.Contains(out, row.want) {
			t.Errorf("%q: printed %q, want %q", row.args, out, row.want)
		}
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the key file was changed")
	}
	proxyKeys(t, 0, "destroy", path, "--version", "1", "--yes")
	for _, args := range [][]string{{"enable"}, {"disable"}} {
		if out := proxyKeys(t, 1, append(args, "--version", "1", path)...); !strings.Contains(out, "is destroyed") {
			t.Errorf("%q of a destroyed version: printed %q", args, out)
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if out := proxyKeys(t, 1, "list", path); !strings.Contains(out, "chmod o=") {
		t.Errorf("a file that all can read: printed %q", out)
	}
}

func pemOf(name string, key []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: name, Bytes: key})
}

func TestKeysImport(t *testing.T) {
	std, url := base64.StdEncoding.EncodeToString(importKey), base64.URLEncoding.EncodeToString(importKey)
	want := ""
	for name, text := range map[string]string{
		"raw": string(importKey), "hex": hex.EncodeToString(importKey), "hex in capitals": strings.ToUpper(hex.EncodeToString(importKey)),
		"hex and a line feed": hex.EncodeToString(importKey) + "\n", "hex and CR LF": hex.EncodeToString(importKey) + "\r\n",
		"base64": std, "base64 and a line feed": std + "\n", "base64 without padding": strings.TrimRight(std, "="),
		"base64url": url, "base64url without padding": strings.TrimRight(url, "=") + "\n",
		"PEM": string(pemOf("AES KEY", importKey)), "PEM after a line feed": "\n" + string(pemOf("SYMMETRIC KEY", importKey)),
	} {
		dir := t.TempDir()
		from, path := filepath.Join(dir, "from"), filepath.Join(dir, "key")
		if err := os.WriteFile(from, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		proxyKeys(t, 0, "import", path, "--from", from)
		w, err := kms.NewLocal(path)
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			want = w.KeyID()
		}
		if w.KeyID() != want {
			t.Errorf("%s: another key than in the other forms", name)
		}
		if written, _ := os.ReadFile(path); !bytes.Contains(written, []byte(std)) {
			t.Errorf("%s: the file does not hold the key", name)
		}
		if out := proxyKeys(t, 1, "import", path, "--from", from); !strings.Contains(out, "file exists") {
			t.Errorf("%s: a second import printed %q", name, out)
		}
	}
}

func TestKeysImportFromStandardInput(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	if err := os.WriteFile(from, importKey, 0o600); err != nil {
		t.Fatal(err)
	}
	stdin := os.Stdin
	t.Cleanup(func() { os.Stdin = stdin })
	var listed []string
	for _, args := range [][]string{{"import"}, {"import", "--from", "-"}} {
		f, err := os.Open(from)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		os.Stdin = f
		listed = append(listed, strings.Fields(proxyKeys(t, 0, append(args, filepath.Join(dir, args[len(args)-1]))...))[0])
	}
	if listed[0] != listed[1] {
		t.Errorf("two keys: %q", listed)
	}
}

func TestKeysImportRefuses(t *testing.T) {
	std := base64.StdEncoding.EncodeToString
	mixed := strings.Replace(std(importKey), "+", "-", 1)
	for _, row := range []struct{ name, text, want string }{
		{"nothing", "", "there is no key"},
		{"white space", " \n\t\n", "there is no key"},
		{"31 bytes", string(importKey[:31]), "31 bytes that are not text"},
		{"raw and a line feed", string(importKey) + "\n", "33 bytes that are not text"},
		{"two raw keys", string(importKey) + string(importKey), "64 bytes that are not text"},
		{"passphrase of 32", "correct-horse-battery-staple-123", "32 bytes of text"},
		{"passphrase of 32 with spaces", "correct horse battery staples 32", "32 bytes of text"},
		{"passphrase of 32 in UTF-8", "Rosenkohl über grüne Bohnen! 1", "32 bytes of text"},
		{"32 hexadecimal digits", hex.EncodeToString(importKey[:16]), "32 bytes of text"},
		{"62 hexadecimal digits", hex.EncodeToString(importKey[:31]), "62 hexadecimal digits: a key has 64"},
		{"66 hexadecimal digits", hex.EncodeToString(importKey) + "00", "66 hexadecimal digits: a key has 64"},
		{"63 hexadecimal digits", hex.EncodeToString(importKey)[1:], "63 hexadecimal digits"},
		{"hex or base64", "0" + strings.Repeat("ab", 20) + "A0", "could also be base64"},
		{"hex on two lines", hex.EncodeToString(importKey[:16]) + "\n" + hex.EncodeToString(importKey[16:]), "not text on one line"},
		{"passphrase", "Tr0ub4dor&3", "neither raw"},
		{"hex with 0x", "0x" + hex.EncodeToString(importKey), "neither raw"},
		{"base64 of 31", std(importKey[:31]), "base64 of 31 bytes: a key has 32"},
		{"base64 of 33", std(append(bytes.Clone(importKey), 1)), "base64 of 33 bytes: a key has 32"},
		{"base64 of the older file", "cmekproxy-local-key-v1:" + std(importKey), "neither raw"},
		{"mixed alphabets", mixed, "neither raw"},
		{"base64 with too much padding", std(importKey) + "=", "neither raw"},
		{"base64 on two lines", std(importKey)[:20] + "\n" + std(importKey)[20:], "not text on one line"},
		{"base64 with unused bits", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=", "neither raw"},
		{"PEM of 16", string(pemOf("AES KEY", importKey[:16])), "PEM of 16 bytes: a key has 32"},
		{"two PEM blocks", string(pemOf("AES KEY", importKey)) + string(pemOf("AES KEY", importKey)), "more than one PEM block"},
		{"private key", string(pemOf("PRIVATE KEY", importKey)), `PEM of type "PRIVATE KEY"`},
		{"certificate", string(pemOf("CERTIFICATE", importKey)), "no AES key"},
		{"encrypted PEM", string(pem.EncodeToMemory(&pem.Block{Type: "AES KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: importKey})), "is it encrypted?"},
		{"cut PEM", string(pemOf("AES KEY", importKey)[:60]), "damaged"},
		{"raw zeros", string(make([]byte, 32)), "the same"},
		{"zeros in hex", strings.Repeat("0", 64), "the same"},
		{"zeros in base64", std(make([]byte, 32)), "the same"},
		{"one byte in hex", strings.Repeat("5a", 32), "the same"},
		{"raw 0xff", strings.Repeat("\xff", 32), "the same"},
		{"too long", strings.Repeat("a", 5000), "more than 4096 bytes"},
	} {
		dir := t.TempDir()
		from, path := filepath.Join(dir, "from"), filepath.Join(dir, "key")
		if err := os.WriteFile(from, []byte(row.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out := proxyKeys(t, 1, "import", path, "--from", from); !strings.Contains(out, row.want) {
			t.Errorf("%s: printed %q, want %q", row.name, out, row.want)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: a key file was made", row.name)
		}
	}
}

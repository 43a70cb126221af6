//go:build !nodev

package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// keygen makes a recovery key, and returns the path of the private key and
// the text of the public one.
func (m *move) keygen(name string) (path, public string) {
	m.t.Helper()
	path = filepath.Join(m.dir, name)
	out := m.command(0, "recovery", "keygen", "-o", path)
	public = regexp.MustCompile(`(?m)^recovery_public_key: (\S+)$`).FindStringSubmatch(out)[1]
	return path, public
}

// configured writes a configuration with other settings for its keys.
func (m *move) configured(name, keys, rule string) string {
	m.t.Helper()
	text, err := os.ReadFile(m.config(name, m.store, rule))
	if err != nil {
		m.t.Fatal(err)
	}
	path := filepath.Join(m.dir, name)
	changed := strings.Replace(string(text), "keys:\n", "keys:\n"+keys, 1) +
		"dek_cache: {ttl: 2s, revocation_probe: 1s}\n"
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// The KMS key is lost. The recovery key opens every object, and gives all of
// them a new KMS key. The proxy cannot open them meanwhile.
func TestRecovery(t *testing.T) {
	m := newMove(t)
	m.put("before", text(1, 1000)) // without a recovery key
	m.stopProxy()

	private, public := m.keygen("recovery.key")
	other, _ := m.keygen("other.key")
	old := fmt.Sprintf("  - {name: old, provider: local, key_file: %s, recovery_public_key: %q}\n", m.keys["old"], public)
	config := m.configured("recoverable.yaml", old, "old")
	m.app, m.stopProxy = m.serve(config)
	m.put("after", text(2, 100_000))
	m.upload("parts", []int32{1, 2}, 5<<20, 1<<20)

	if out := m.command(0, "rewrap", "--config", config, "s3://bucket"); !strings.Contains(out, "rewrapped  1 objects") {
		t.Errorf("the object of before does not get the recovery key:\n%s", out)
	}
	if out := m.command(0, "rewrap", "--config", config, "s3://bucket"); !strings.Contains(out, "rewrapped  0 objects") {
		t.Errorf("again:\n%s", out)
	}
	key, err := kms.ParseRecoveryPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if out := m.command(0, "inventory", "--config", config, "s3://bucket"); strings.Count(out, key.ID()) != 1 ||
		!strings.Contains(out, "         3  ") {
		t.Errorf("the inventory does not show the recovery key of three objects:\n%s", out)
	}

	if out := m.command(0, "verify", "--config", config, "s3://bucket"); !strings.Contains(
		out, "recovery   3 "+key.ID(),
	) || strings.Contains(out, "no recovery key opens") {
		t.Errorf("verify does not show it:\n%s", out)
	}

	if err := os.Remove(m.keys["old"]); err != nil {
		t.Fatal(err)
	}
	m.waitUnreadable()
	for name := range m.texts {
		if _, err := m.app.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &m.bucket, Key: &name}); err == nil {
			t.Errorf("the proxy reads %s without its key", name)
		}

		file := filepath.Join(m.dir, "out-"+name)
		m.command(0, "decrypt", "--config", config, "--recovery-key", private, "s3://bucket/"+name, "-o", file)
		m.expectFile(file, name)

		for _, wrong := range []string{other, m.keys["new"], "/gone"} {
			m.command(1, "decrypt", "--config", config, "--recovery-key", wrong, "s3://bucket/"+name, "-o", file+".wrong")
			if _, err := os.Stat(file + ".wrong"); err == nil {
				t.Errorf("the key %s opens %s", wrong, name)
			}
		}
		m.command(1, "decrypt", "--config", config, "s3://bucket/"+name, "-o", file+".wrong")
	}
	m.stopProxy()
	m.command(1, "verify", "--config", config, "s3://bucket")
	m.command(0, "verify", "--config", config, "--recovery-key", private, "s3://bucket")

	renewed := m.configured("renewed.yaml", "  - {name: new, provider: local, key_file: "+m.keys["new"]+"}\n", "new")
	out := m.command(0, "rewrap", "--config", renewed, "--recovery-key", private, "s3://bucket")
	if !strings.Contains(out, "rewrapped  3 objects") {
		t.Errorf("under the new key:\n%s", out)
	}
	if out := m.command(0, "verify", "--config", renewed, "s3://bucket"); strings.Contains(out, "recovery") {
		t.Errorf("verify under a key without a recovery key:\n%s", out)
	}
	m.app, m.stopProxy = m.serve(renewed)
	m.readable(m.app)
	m.stopProxy()
}

// waitUnreadable waits until the proxy has noticed that a key is gone.
func (m *move) waitUnreadable() {
	m.t.Helper()
	eventually(m.t, "an object becomes unreadable", func() bool { return !m.anyRead() })
}

// anyRead reports whether the proxy reads any of the objects.
func (m *move) anyRead() bool {
	for name := range m.texts {
		if out, err := m.app.GetObject(m.t.Context(), &s3.GetObjectInput{Bucket: &m.bucket, Key: &name}); err == nil {
			out.Body.Close()
			return true
		}
	}
	return false
}

func (m *move) allRead() bool {
	for name := range m.texts {
		out, err := m.app.GetObject(m.t.Context(), &s3.GetObjectInput{Bucket: &m.bucket, Key: &name})
		if err != nil {
			return false
		}
		out.Body.Close()
	}
	return true
}

func (m *move) expectFile(path, key string) {
	m.t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	if sum := sha256.Sum256(got); sum != m.texts[key] {
		m.t.Errorf("%s: other bytes", key)
	}
}

// A key that consists of two, from the configuration to the client: either
// owner can take it away, and with any-of one may be missing.
func TestKeysOfSeveral(t *testing.T) {
	for _, provider := range []string{"all-of", "any-of"} {
		t.Run(provider, func(t *testing.T) {
			m := newMove(t)
			m.stopProxy()
			keys := fmt.Sprintf("  - {name: old, provider: local, key_file: %s}\n  - {name: new, provider: local, key_file: %s}\n"+
				"  - {name: both, provider: %s, members: [old, new]}\n", m.keys["old"], m.keys["new"], provider)
			config := m.configured("both.yaml", keys, "both")
			m.command(0, "check", "--config", config)
			m.app, m.stopProxy = m.serve(config)
			m.put("single", text(1, 1000))
			m.upload("parts", []int32{1, 2}, 5<<20, 1<<20)
			m.readable(m.app)
			if out := m.command(0, "inventory", "--config", config, "s3://bucket"); !strings.Contains(out, provider+":both") {
				t.Errorf("the inventory:\n%s", out)
			}

			for _, away := range []string{"old", "new"} {
				if err := os.Rename(m.keys[away], m.keys[away]+".away"); err != nil {
					t.Fatal(err)
				}
				m.waitUnreadable()
				for name := range m.texts {
					if _, err := m.app.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &m.bucket, Key: &name}); err == nil {
						t.Errorf("%s is read although %s is revoked", name, away)
					}
				}
				name := "refused"
				_, err := m.app.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &m.bucket, Key: &name, Body: bytes.NewReader(nil)})
				if err == nil {
					t.Errorf("an object is written although %s is revoked", away)
				}

				if err := os.Rename(m.keys[away]+".away", m.keys[away]); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the key works again, and no refusal is remembered", m.allRead)
				m.readable(m.app)
			}
			m.stopProxy()
		})
	}
}

func TestRecoveryKeygen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "recovery.key")
	var out bytes.Buffer
	if code := run(t.Context(), []string{"recovery", "keygen", "-o", path}, &out, &out); code != 0 {
		t.Fatal(out.String())
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	private, err := os.ReadFile(path)
	if err != nil || strings.Contains(out.String(), strings.TrimSpace(string(private))[30:]) {
		t.Errorf("the private key is printed: %v", err)
	}

	if code := run(t.Context(), []string{"recovery", "keygen", "-o", path}, &out, &out); code != 1 {
		t.Errorf("a second time: exit code %d", code)
	}
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, private) {
		t.Errorf("the key was overwritten: %v", err)
	}
}

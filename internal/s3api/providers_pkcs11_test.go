//go:build pkcs11 && cgo

package s3api_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// hsmKey returns a key in a SoftHSM token, managed with the tools of
// Debian's softhsm2 and opensc.
func hsmKey(t *testing.T) *owned {
	t.Helper()
	const module, pin = "/usr/lib/softhsm/libsofthsm2.so", "1234567"
	if _, err := os.Stat(module); err != nil {
		t.Fatal("SoftHSM is not installed: apt-get install softhsm2 opensc")
	}

	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(
		conf, []byte("directories.tokendir = "+dir+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600,
	); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)

	tool := func(name string, args ...string) error {
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, out)
		}
		return nil
	}

	object := func(args ...string) error {
		return tool(
			"pkcs11-tool",
			append([]string{"--module", module, "--token-label", "premises", "--login", "--pin", pin}, args...)...)
	}

	value := filepath.Join(dir, "value")
	steps := []error{
		tool("softhsm2-util", "--init-token", "--free", "--label", "premises", "--pin", pin, "--so-pin", "12345678"),
		os.WriteFile(value, randomText(32), 0o600),
	}

	give := func() error {
		return object(
			"--write-object",
			value,
			"--type",
			"secrkey",
			"--key-type",
			"AES:32",
			"--label",
			"wrapping",
			"--id",
			"01",
			"--usage-decrypt",
		)
	}
	for _, err := range append(steps, give()) {
		if err != nil {
			t.Fatal(err)
		}
	}

	key, err := kms.NewPKCS11(
		t.Context(),
		kms.PKCS11Config{Module: module, TokenLabel: "premises", KeyLabel: "wrapping", PIN: pin},
	)
	if err != nil {
		t.Fatal(err)
	}

	take := func() error { return object("--delete-object", "--type", "secrkey", "--label", "wrapping") }
	return &owned{"pkcs11", key, take, give, "KMS.NotFoundException"}
}

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// checkDecrypted reads stored objects without a proxy: with `cmekproxy
// decrypt`, and with the independent decryptor, which shares only the
// specification with it.
func checkDecrypted(t *testing.T, c *cluster, bucket string, text []byte) {
	if !c.store.proxied {
		t.Skip("nothing is encrypted")
	}
	defer progress(t)
	judge := newGoSDK(c.endpoint)
	objects := map[string]int{"aws-cli": len(text)}
	for _, row := range layouts {
		objects["layout "+row.name] = 0
		for _, size := range row.sizes {
			objects["layout "+row.name] += size
		}
	}

	for _, size := range []int{0, 1, 65_496, 65_497, 3_000_000} {
		key := "single/" + string(rune('a'+size%26))
		if err := judge.put(bucket, key, text[:size]); err != nil {
			t.Fatal(err)
		}
		objects[key] = size
	}

	dir := t.TempDir()
	for key, size := range objects {
		if key == "aws-cli" && !selected(key) {
			continue
		}
		file := filepath.Join(dir, "decrypted")
		for name, cmd := range map[string]*exec.Cmd{
			"cmekproxy decrypt": exec.CommandContext(t.Context(), tool(t, "cmekproxy"), "decrypt", "--config", c.config, "s3://"+bucket+"/"+key, "-o", file),
			"contrib":           independent(t, c, "s3://"+bucket+"/"+key, file),
		} {
			if cmd.Env == nil {
				cmd.Env = c.env
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %s: %v\n%s", name, key, err, out)
				continue
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, text[:size]) {
				t.Errorf("%s: %s: %d of %d bytes, %v", name, key, len(got), size, err)
			}
			if err := os.Remove(file); err != nil {
				t.Error(err)
			}
		}
	}
}

func independent(t *testing.T, c *cluster, object, file string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), decryptPython(), "../contrib/decrypt/decrypt.py", "--endpoint-url", c.store.store.url, "--region", region,
		"--kms-endpoint-url", c.kms, object, "-o", file)
	cmd.Env = environment("AWS_ACCESS_KEY_ID="+c.store.store.accessKey, "AWS_SECRET_ACCESS_KEY="+c.store.store.secret, "AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE=/nonexistent", "AWS_SHARED_CREDENTIALS_FILE=/nonexistent")
	return cmd
}

// decryptPython returns a Python that has both cryptography and boto3.
func decryptPython() string {
	if python := os.Getenv("E2E_DECRYPT_PYTHON"); python != "" {
		return python
	}
	return pythonCommand()
}

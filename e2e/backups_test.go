package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func resticBackup(t *testing.T, u *use) {
	dir, restored := t.TempDir(), t.TempDir()
	writeRandom(t, filepath.Join(dir, "large"), 40*mib)
	writeRandom(t, filepath.Join(dir, "some/small"), 1000)
	env := u.awsEnvironment("RESTIC_REPOSITORY=s3:"+u.c.endpoint.url+"/"+u.bucket, "RESTIC_PASSWORD=correct horse", "RESTIC_CACHE_DIR="+t.TempDir())
	u.does(t, "round trip", func(t *testing.T) {
		must(t, env, "restic", "init")
		must(t, env, "restic", "backup", dir)
		writeRandom(t, filepath.Join(dir, "more"), 20*mib)
		must(t, env, "restic", "backup", dir)
		must(t, env, "restic", "restore", "latest", "--target", restored)
		sameTree(t, dir, filepath.Join(restored, dir))
	})
	u.does(t, "delete", func(t *testing.T) { must(t, env, "restic", "forget", "--keep-last", "1", "--prune") })
	u.does(t, "verify", func(t *testing.T) { must(t, env, "restic", "check", "--read-data") })
}

// duplicityBackup backs up a directory and restores it. Duplicity's own
// encryption is off.
func duplicityBackup(t *testing.T, u *use) {
	dir, restored := t.TempDir(), filepath.Join(t.TempDir(), "restored")
	writeRandom(t, filepath.Join(dir, "large"), 5*mib)
	writeRandom(t, filepath.Join(dir, "some/small"), 1000)
	options := []string{
		"--no-encryption", "--volsize", "2", "--archive-dir", t.TempDir(), "--s3-endpoint-url", u.c.endpoint.url, "--s3-region-name", region,
	}

	at, env := "boto3+s3://"+u.bucket+"/backup", u.awsEnvironment("HOME="+t.TempDir())
	run := func(t *testing.T, args ...string) string {
		return must(t, env, "duplicity", append(args, options...)...)
	}

	u.does(t, "round trip", func(t *testing.T) {
		run(t, "full", dir, at)
		writeRandom(t, filepath.Join(dir, "more"), mib)
		run(t, "incremental", dir, at)
		run(t, "restore", at, restored)
		sameTree(t, dir, restored)
	})

	u.does(t, "verify", func(t *testing.T) {
		if out := run(t, "verify", "--compare-data", at, dir); !strings.Contains(out, " 0 differences found") {
			t.Error(out)
		}
	})
	u.does(t, "delete", func(t *testing.T) { run(t, "remove-all-but-n-full", "1", "--force", at) })
}

// litestreamReplica replicates a database, adds to it, and restores it.
func litestreamReplica(t *testing.T, u *use) {
	dir := t.TempDir()
	database, restored, config := filepath.Join(dir, "app.db"), filepath.Join(dir, "restored.db"), filepath.Join(dir, "litestream.yml")
	text := "dbs:\n  - path: " + database + "\n    replica: {type: s3, bucket: " + u.bucket + ", path: app, endpoint: '" + u.c.endpoint.url +
		"', region: " + region + ", force-path-style: true}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	litestream := filepath.Join(os.Getenv("E2E_BIN"), "litestream")
	u.does(t, "round trip", func(t *testing.T) {
		for _, rows := range []string{"20000", "7"} {
			must(t, environment(), pythonCommand(), "py/rows.py", database, rows)
			must(t, u.awsEnvironment(), litestream, "replicate", "-config", config, "-once")
		}
		must(t, u.awsEnvironment(), litestream, "restore", "-config", config, "-o", restored, database)
		want, got := must(t, environment(), pythonCommand(), "py/rows.py", database), must(t, environment(), pythonCommand(), "py/rows.py", restored)
		if got != want || !strings.HasPrefix(got, "20007 rows") {
			t.Errorf("restored %s, not %s", got, want)
		}
	})

	u.does(t, "listing", func(t *testing.T) {
		if out := must(t, u.awsEnvironment(), litestream, "ltx", "-config", config, database); strings.Count(out, "\n") < 3 {
			t.Errorf("litestream finds %q", out)
		}
	})
}

package e2e

import (
	"bytes"
	"crypto/rand"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTools runs what people run every night: a sync that must find nothing to do the second time, a comparison of
// every byte, and a backup.
func TestTools(t *testing.T) {
	c := startCluster(t)
	tree := newTree(t)
	t.Run("aws s3 sync", func(t *testing.T) { awsSync(t, c, tree) })
	t.Run("rclone check", func(t *testing.T) { rcloneCheck(t, c, tree) })
	t.Run("restic", func(t *testing.T) { resticBackup(t, c) })
}

// newTree is files of sizes around those at which clients change their ways.
func newTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, size := range map[string]int{
		"empty": 0, "byte": 1, "a/5M-1": 5*mib - 1, "a/5M": 5 * mib, "a/8M": 8 * mib, "a/8M+1": 8*mib + 1, "b/16M": 16 * mib,
		"b/20M+3": 20*mib + 3, "b/100M": 100 * mib,
	} {
		writeRandom(t, filepath.Join(dir, name), size)
	}
	return dir
}

func writeRandom(t *testing.T, path string, size int) {
	t.Helper()
	data := make([]byte, size)
	_, _ = rand.Read(data)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// sameTree compares two directories byte for byte.
func sameTree(t *testing.T, a, b string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(a, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		files++
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(a, path)
		if err != nil {
			return err
		}
		if got, err := os.ReadFile(filepath.Join(b, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d of %d bytes, %v", name, len(got), len(want), err)
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%d files compared, %v", files, err)
	}
}

func awsSync(t *testing.T, c *cluster, tree string) {
	if !selected("aws-cli") {
		t.Skip("not selected")
	}
	defer progress(t)
	cli := newAWSCLI(c.endpoint, t.TempDir())
	if err := cli.createBucket("sync"); err != nil {
		t.Fatal(err)
	}
	sync := func(from, to string, more ...string) string {
		t.Helper()
		out, err := cli.run(append([]string{"s3", "sync", "--no-progress", from, to}, more...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	back := t.TempDir()
	if out := sync(tree, "s3://sync/tree"); strings.Count(out, "upload:") != 9 {
		t.Errorf("the first sync says %q", out)
	}
	if out := sync(tree, "s3://sync/tree"); out != "" {
		t.Errorf("the second sync says %q", out)
	}
	if out := sync(tree, "s3://sync/tree", "--size-only"); out != "" {
		t.Errorf("the second sync by size says %q", out)
	}
	if out := sync("s3://sync/tree", back); strings.Count(out, "download:") != 9 {
		t.Errorf("the first sync back says %q", out)
	}
	if out := sync("s3://sync/tree", back); out != "" {
		t.Errorf("the second sync back says %q", out)
	}
	sameTree(t, tree, back)
}

func rcloneCheck(t *testing.T, c *cluster, tree string) {
	if !selected("rclone") {
		t.Skip("not selected")
	}
	defer progress(t)
	r := newRclone(c.endpoint, t.TempDir())
	for _, args := range [][]string{
		{"mkdir", "e2e:rclone"},
		{"copy", "--s3-upload-cutoff", "5Mi", "--s3-chunk-size", "5Mi", tree, "e2e:rclone/tree"},
		{"check", "--download", tree, "e2e:rclone/tree"},
		{"check", "--size-only", tree, "e2e:rclone/tree"},
	} {
		if out, err := r.run(nil, args...); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
}

func resticBackup(t *testing.T, c *cluster) {
	if !selected("restic") {
		t.Skip("not selected")
	}
	defer progress(t)
	dir, restored := t.TempDir(), t.TempDir()
	writeRandom(t, filepath.Join(dir, "large"), 60*mib)
	writeRandom(t, filepath.Join(dir, "some/small"), 1000)
	env := environment("AWS_ACCESS_KEY_ID="+c.endpoint.accessKey, "AWS_SECRET_ACCESS_KEY="+c.endpoint.secret, "AWS_DEFAULT_REGION="+region,
		"RESTIC_REPOSITORY=s3:"+c.endpoint.url+"/restic", "RESTIC_PASSWORD=correct horse", "RESTIC_CACHE_DIR="+t.TempDir())
	run := func(args ...string) {
		t.Helper()
		if out, err := runTool(env, nil, "restic", args...); err != nil {
			t.Fatalf("restic %v: %v\n%s", args, err, out)
		}
	}
	run("init")
	run("backup", dir)
	writeRandom(t, filepath.Join(dir, "more"), 20*mib)
	run("backup", dir)
	run("check", "--read-data")
	run("restore", "latest", "--target", restored)
	sameTree(t, dir, filepath.Join(restored, dir))
}

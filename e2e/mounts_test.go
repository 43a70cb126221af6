package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// mounted makes a program mount a file system until the test ends.
func mounted(t *testing.T, command func(point string) (env []string, name string, args []string)) string {
	t.Helper()
	point := filepath.Join(t.TempDir(), "mount")
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}

	env, name, args := command(point)
	before := device(t, point)
	p := start(t, filepath.Base(filepath.Dir(filepath.Dir(point)))+"-mount", env, name, args...)
	t.Cleanup(func() { // before the process is stopped
		if out, err := exec.Command("fusermount", "-u", point).CombinedOutput(); err != nil {
			t.Errorf("unmounting: %v: %s", err, out)
		}
		select {
		case <-p.done:
		case <-time.After(startTimeout):
			t.Errorf("%s does not end when its file system is unmounted", name)
		}
		if log, err := os.ReadFile(p.log); err != nil || complaint(string(log)) != nil {
			t.Errorf("%s: %v, %v", name, err, complaint(string(log)))
		}
	})

	for deadline := time.Now().Add(startTimeout); device(t, point) == before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s mounts nothing:\n%s", name, tail(p.log, 20))
		}
	}
	return point
}

// device returns the device number of a path, which differs between file
// systems.
func device(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Dev
}

// readAtRandom reads pieces at random offsets of a file.
func readAtRandom(t *testing.T, path, original string) {
	t.Helper()
	want, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}

	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	random := rand.New(rand.NewPCG(2, 2))
	for range 20 {
		from := random.IntN(len(want))
		to := min(from+random.IntN(300_000), len(want))
		got, err := io.ReadAll(io.NewSectionReader(f, int64(from), int64(to-from)))
		if err != nil || !bytes.Equal(got, want[from:to]) {
			t.Errorf("bytes %d to %d: %d bytes, %v", from, to, len(got), err)
		}
	}
}

// s3fsMount writes, reads, renames and removes files in a mounted bucket and
// in a mounted directory of the bucket.
func s3fsMount(t *testing.T, u *use) {
	e, dir := u.c.endpoint, t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(e.accessKey+":"+e.secret), 0o600); err != nil {
		t.Fatal(err)
	}

	point := mounted(t, func(point string) ([]string, string, []string) {
		return environment(), "s3fs", []string{
			u.bucket, point, "-f", "-o", "passwd_file=" + password, "-o", "url=" + e.url, "-o", "use_path_request_style", "-o", "endpoint=" + region,
		}
	})

	u.does(t, "round trip", func(t *testing.T) { must(t, environment(), "mkdir", filepath.Join(point, "folder")) })
	for _, row := range []struct {
		name string
		size int
	}{{"folder/small", 70_000}, {"large", 25*mib + 1}} {
		original, path, renamed := filepath.Join(dir, row.name), filepath.Join(point, row.name), filepath.Join(point, row.name+" renamed")
		writeRandom(t, original, row.size)
		put := "round trip"
		if row.size > 20*mib {
			put = "multipart"
		}
		u.does(t, put, func(t *testing.T) {
			must(t, environment(), "cp", original, path)
			must(t, environment(), "cmp", original, path)
		})
		u.does(t, "ranges", func(t *testing.T) { readAtRandom(t, path, original) })
		u.does(t, "copy", func(t *testing.T) {
			must(t, environment(), "mv", path, renamed)
			must(t, environment(), "chmod", "0640", renamed)
			must(t, environment(), "cmp", original, renamed)
		})
		u.does(t, "listing", func(t *testing.T) {
			entries, err := os.ReadDir(filepath.Dir(renamed))
			if err != nil || !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == filepath.Base(renamed) }) {
				t.Errorf("%v, %v", entries, err)
			}
		})
		u.does(t, "sizes", func(t *testing.T) {
			if info, err := os.Stat(renamed); err != nil || info.Size() != int64(row.size) || info.Mode().Perm() != 0o640 {
				t.Errorf("%v, %v", info, err)
			}
		})
		u.does(t, "delete", func(t *testing.T) { must(t, environment(), "rm", renamed) })
	}

	u.does(t, "delete", func(t *testing.T) {
		must(t, environment(), "rmdir", filepath.Join(point, "folder"))
		if entries, err := os.ReadDir(point); err != nil || len(entries) != 0 {
			t.Errorf("left: %v, %v", entries, err)
		}
	})
}

// s3backerMount writes to a block device in a bucket, which s3backer asks for
// with a virtual host.
func s3backerMount(t *testing.T, u *use) {
	const size = 20 * mib
	e, dir := u.c.endpoint, t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(e.accessKey+":"+e.secret), 0o600); err != nil {
		t.Fatal(err)
	}

	_, port, err := net.SplitHostPort(e.host())
	if err != nil {
		t.Fatal(err)
	}
	options := []string{
		"--vhost", "--baseURL=http://" + domain + ":" + port + "/", "--accessFile=" + password, "--region=" + region, "--blockSize=128k",
		"--size=2g", "--listBlocks",
	}
	mount := func(t *testing.T) string {
		t.Helper()
		return mounted(t, func(point string) ([]string, string, []string) {
			return environment(), "s3backer", append(slices.Clone(options), "-f", u.bucket, point)
		})
	}

	original := filepath.Join(dir, "original")
	writeRandom(t, original, size)
	u.does(t, "round trip", func(t *testing.T) {
		must(t, environment(), "dd", "status=none", "conv=notrunc,fsync", "bs=1M", "if="+original, "of="+filepath.Join(mount(t), "file"))
	})
	u.does(t, "ranges", func(t *testing.T) {
		device := filepath.Join(mount(t), "file")
		readAtRandom(t, device, original)
		must(t, environment(), "cmp", fmt.Sprintf("--bytes=%d", size), device, original)
		// Zeros are no blocks: they are deleted.
		must(t, environment(), "dd", "status=none", "conv=notrunc,fsync", "bs=1M", "count=10", "if=/dev/zero", "of="+device)
	})

	u.does(t, "listing", func(t *testing.T) {
		sizes, err := newGoSDK(e).list(u.bucket, "")
		if err != nil || len(sizes) < 80 || len(sizes) > 82 {
			t.Errorf("%d blocks, not 80, %v", len(sizes), err)
		}
	})
	u.does(t, "delete", func(t *testing.T) {
		must(t, environment(), "s3backer", append(slices.Clone(options), "--erase", "--force", u.bucket)...)
		if sizes, err := newGoSDK(e).list(u.bucket, ""); err != nil || len(sizes) > 1 {
			t.Errorf("left: %v, %v", sizes, err)
		}
	})
}

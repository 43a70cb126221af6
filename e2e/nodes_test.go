package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// node is a network namespace with one address, as a pod or a machine has.
type node struct {
	name    string
	link    string // the host's end of its cable
	host    string // the host's address on the cable
	address string
}

// newNodes makes namespaces. They are removed when the test ends, even if it
// is killed.
func newNodes(t *testing.T, count int) (nodes []*node) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("ip is not installed (Debian: iproute2)")
	}
	for i := range count {
		id := fmt.Sprintf("cmek%d.%d", os.Getpid(), i) // a link's name has at most 15 characters
		// 198.18.0.0/15 is for tests of networks (RFC 2544).
		net := fmt.Sprintf("198.%d.%d.", 18+os.Getpid()>>8&1, os.Getpid()&255)
		n := &node{name: id, link: id, host: net + fmt.Sprint(4*i+1), address: net + fmt.Sprint(4*i+2)}
		if out, err := exec.CommandContext(t.Context(), "ip", "netns", "add", n.name).CombinedOutput(); err != nil {
			if i == 0 && os.Getenv("E2E_FULL") == "" {
				fmt.Printf("%-24s skipped: network namespaces need root: ip netns add: %s", t.Name(), out)
				t.Skip("network namespaces need root")
			}
			t.Fatalf("ip netns add: %v: %s", err, out)
		}
		// Without the second route, packets to a node without its cable would
		// leave this machine.
		subnet := net + fmt.Sprint(4*i) + "/30"
		removeAtEnd(t, "ip netns del "+n.name+"; ip route del blackhole "+subnet)
		for _, args := range []string{
			"route add blackhole " + subnet + " metric 4096",
			"link add " + n.link + " type veth peer name eth0 netns " + n.name,
			"address add " + n.host + "/30 dev " + n.link,
			"link set " + n.link + " up",
			"-n " + n.name + " address add " + n.address + "/30 dev eth0",
			"-n " + n.name + " link set eth0 up",
			"-n " + n.name + " link set lo up",
		} {
			must(t, environment(), "ip", strings.Fields(args)...)
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// removeAtEnd starts a process that runs a shell command when this one has
// ended, however that happens.
func removeAtEnd(t *testing.T, command string) {
	t.Helper()
	remover := exec.CommandContext(context.Background(), "sh", "-c", "cat; "+command)
	remover.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not for it
	pipe, err := remover.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := remover.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = pipe.Close()
		if err := remover.Wait(); err != nil {
			t.Errorf("%s: %v", command, err)
		}
	})
}

// cut takes the cable away, and mend puts it back.
func (n *node) cut(t *testing.T)  { must(t, environment(), "ip", "link", "set", n.link, "down") }
func (n *node) mend(t *testing.T) { must(t, environment(), "ip", "link", "set", n.link, "up") }

// command returns a command that runs in the namespace.
func (n *node) command(args ...string) []string {
	return append([]string{"ip", "netns", "exec", n.name}, args...)
}

// volume is a directory of files as the kubelet mounts a ConfigMap or a
// Secret: the files are links into ..data, which is a link to a directory
// with a time in its name. An update replaces ..data.
// https://pkg.go.dev/k8s.io/kubernetes/pkg/volume/util#AtomicWriter
type volume struct{ dir string }

func newVolume(t *testing.T, files map[string]string) *volume {
	t.Helper()
	v := &volume{t.TempDir()}
	v.swap(t, files)
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), v.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

func (v *volume) path(name string) string { return filepath.Join(v.dir, name) }

// swap replaces all files.
func (v *volume) swap(t *testing.T, files map[string]string) {
	t.Helper()
	next, err := os.MkdirTemp(v.dir, time.Now().UTC().Format("..2006_01_02_15_04_05.")) //nolint:usetesting // part of the volume
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(next, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	before, _ := os.Readlink(v.path("..data"))
	if err := os.Symlink(filepath.Base(next), v.path("..data_tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(v.path("..data_tmp"), v.path("..data")); err != nil {
		t.Fatal(err)
	}
	if before != "" {
		if err := os.RemoveAll(v.path(before)); err != nil {
			t.Fatal(err)
		}
	}
}

// read returns the text of a file.
func read(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

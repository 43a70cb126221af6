package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// storeKind returns the store that the tests use: the value of STORE, or
// versitygw.
func storeKind() string {
	if kind := os.Getenv("STORE"); kind != "" {
		return kind
	}
	return "versitygw"
}

// startStore starts the store.
func (s *stack) startStore(t *testing.T, scheme string, c credentials, cert, key string) endpoint {
	t.Helper()
	e := endpoint{name: scheme, url: scheme + "://" + freeAddress(t), ca: cert, credentials: c}
	var (
		env     []string
		command string
		args    []string
	)
	switch storeKind() {
	case "versitygw":
		env, command, args = s.versitygw(t, e, key)
	case "minio":
		env, command, args = s.minio(t, e, key)
	case "seaweedfs":
		env, command, args = s.seaweedfs(t, e, key)
	case "ceph":
		return s.ceph(t, e)
	default:
		t.Fatalf("STORE is %q, and must be versitygw, minio, seaweedfs or ceph", storeKind())
	}
	p := start(t, s.name+"store-"+scheme, env, command, args...)
	s.logs = append(s.logs, p.log)
	p.waitForPort(t, e.host())
	if storeKind() == "seaweedfs" {
		waitForBuckets(t, e)
	}
	return e
}

func (s *stack) versitygw(t *testing.T, e endpoint, key string) (env []string, command string, args []string) {
	t.Helper()
	args = []string{"--port", e.host(), "--region", region}
	if e.ca != "" {
		args = append(args, "--cert", e.ca, "--key", key)
	}
	if s.iam != "" {
		args = append(args, "--iam-dir", s.iam)
	}
	args = append(args, "posix")
	if s.versions != "" {
		args = append(args, "--versioning-dir", s.versions)
	}
	return environment("ROOT_ACCESS_KEY="+e.accessKey, "ROOT_SECRET_KEY="+e.secret), tool(t, "versitygw"), append(args, s.dir)
}

// minio returns the command that starts MinIO. MinIO keeps versions by
// itself and requires fixed names for its certificate files.
func (s *stack) minio(t *testing.T, e endpoint, key string) (env []string, command string, args []string) {
	t.Helper()
	certs := t.TempDir()
	if e.ca != "" {
		for name, path := range map[string]string{"public.crt": e.ca, "private.key": key} {
			data, err := os.ReadFile(path)
			if err = errors.Join(err, os.WriteFile(filepath.Join(certs, name), data, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	env = environment("MINIO_ROOT_USER="+e.accessKey, "MINIO_ROOT_PASSWORD="+e.secret, "MINIO_REGION="+region, "MINIO_BROWSER=off", "HOME="+certs)
	return env, tool(t, "minio"), []string{"server", "--quiet", "--certs-dir", certs, "--address", e.host(), s.dir}
}

// seaweedfs returns the command that starts SeaweedFS. It keeps each bucket in
// volumes of its own, so it needs many.
func (s *stack) seaweedfs(t *testing.T, e endpoint, key string) (env []string, command string, args []string) {
	t.Helper()
	users := filepath.Join(t.TempDir(), "users.json")
	text := fmt.Sprintf(`{"identities": [{"name": "admin", "credentials": [{"accessKey": %q, "secretKey": %q}],
		"actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}`, e.accessKey, e.secret)
	if err := os.WriteFile(users, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(e.host())
	if err != nil {
		t.Fatal(err)
	}

	master, volume, filer, grpc := freePorts(t), freePorts(t), freePorts(t), freePorts(t)
	args = []string{
		"server", "-dir", s.dir, "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1",
		"-master.port", master, "-volume.port", volume, "-filer.port", filer,
		"-volume.max", "1000", "-master.volumeSizeLimitMB", "64",
		"-s3", "-s3.config", users, "-s3.port", port, "-s3.port.grpc", grpc, "-s3.port.iceberg", "0",
	}
	if e.ca != "" {
		args = append(args, "-s3.cert.file", e.ca, "-s3.key.file", key)
	}
	return environment(), tool(t, "weed"), args
}

// freePorts returns a free port below 20,000. SeaweedFS also uses the port that
// is higher by 10,000.
func freePorts(t *testing.T) string {
	t.Helper()
	for {
		_, port, err := net.SplitHostPort(freeAddress(t))
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		if n+10_000 > 65_535 {
			continue
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n+10_000)); err == nil {
			l.Close()
			return port
		}
	}
}

// cephPorts is how many ports ceph.sh uses.
const cephPorts = 20

// ceph starts a Ceph of one node. It has no TLS.
func (s *stack) ceph(t *testing.T, e endpoint) endpoint {
	t.Helper()
	var failure error
	for range 3 { // another process may have taken one of the ports
		_, port, err := net.SplitHostPort(e.host())
		if err != nil {
			t.Fatal(err)
		}
		nextPort.Add(cephPorts)

		dir := filepath.Join(s.dir, port)
		cmd := exec.CommandContext(t.Context(), "./ceph.sh", "up", dir, port)
		cmd.Env = environment("CEPH_ACCESS="+e.accessKey, "CEPH_SECRET="+e.secret, "CEPH_REGION="+region)
		out, err := cmd.CombinedOutput()
		t.Cleanup(func() { _ = exec.Command("./ceph.sh", "down", dir).Run() })
		if err == nil {
			return e
		}
		failure = fmt.Errorf("ceph.sh: %w\n%s", err, out)
		e.url = "http://" + freeAddress(t)
	}
	t.Fatal(failure)
	return e
}

// waitForBuckets waits until the store can make a bucket with an object: it
// listens before it can.
func waitForBuckets(t *testing.T, e endpoint) {
	t.Helper()
	const bucket = "e2e-ready"
	c := newGoSDK(e)
	var err error
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if err = c.createBucket(bucket); err != nil {
			continue
		}
		if err = c.put(bucket, "ready", []byte("ready")); err != nil {
			_ = c.removeBucket(bucket)
			continue
		}
		err = errors.Join(c.remove(bucket, "ready"), c.removeBucket(bucket))
		break
	}
	if err != nil {
		t.Fatalf("the store is not ready: %s", code(err))
	}
}

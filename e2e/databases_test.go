package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// postgres is a PostgreSQL server with one table.
type postgres struct {
	name, dir, data, host, port string
	starts                      int
	process                     *process
}

// asPostgres makes a command run as the user of Debian's package:
// PostgreSQL refuses to run as root.
func asPostgres(command ...string) (string, []string) {
	if os.Geteuid() == 0 {
		command = append([]string{"setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"}, command...)
	}
	return command[0], command[1:]
}

// newPostgres makes a database cluster. Its directory belongs to the user
// that PostgreSQL runs as.
func newPostgres(t *testing.T, name string) *postgres {
	t.Helper()
	dir := storeDir(t)
	if os.Geteuid() == 0 {
		must(t, environment(), "chown", "postgres", dir)
	}
	p := &postgres{name: name, dir: dir, data: filepath.Join(dir, "data")}
	p.run(t, environment(), "mkdir", filepath.Join(dir, "log"))
	host, port, err := net.SplitHostPort(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	p.host, p.port = host, port
	p.run(t, environment(), p.program(t, "initdb"), "-U", "postgres", "-D", p.data)
	return p
}

func (p *postgres) program(t *testing.T, name string) string {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err != nil || len(found) == 0 {
		t.Fatalf("no %s: %v", name, err)
	}
	return found[len(found)-1]
}

func (p *postgres) run(t *testing.T, env []string, command ...string) string {
	t.Helper()
	name, args := asPostgres(command...)
	return must(t, env, name, args...)
}

// write writes a file that PostgreSQL can read.
func (p *postgres) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// start starts the server. Settings are as in postgresql.conf.
func (p *postgres) start(t *testing.T, env []string, settings ...string) {
	t.Helper()
	command := []string{p.program(t, "postgres"), "-D", p.data}
	for _, setting := range append(settings, "listen_addresses="+p.host, "port="+p.port, "unix_socket_directories="+p.dir, "fsync=off") {
		command = append(command, "-c", setting)
	}
	name, args := asPostgres(command...)
	p.starts++
	p.process = start(t, fmt.Sprintf("postgres-%s.%d", p.name, p.starts), env, name, args...)
	p.process.waitForPort(t, net.JoinHostPort(p.host, p.port))
}

// sql returns the result of a statement. It waits until a server that
// recovers accepts statements.
func (p *postgres) sql(t *testing.T, statement string) string {
	t.Helper()
	args := []string{"-h", p.host, "-p", p.port, "-U", "postgres", "-d", "postgres", "-qAt", "-c", statement}
	for deadline := time.Now().Add(2 * startTimeout); ; time.Sleep(200 * time.Millisecond) {
		out, err := runTool(environment(), nil, "psql", args...)
		if err == nil {
			return strings.TrimSpace(out)
		}
		if !strings.Contains(err.Error(), "starting up") && !strings.Contains(err.Error(), "not yet accepting") && !strings.Contains(err.Error(), "not accepting") || time.Now().After(deadline) {
			t.Fatalf("%s: %v\n%s", statement, err, tail(p.process.log, 20))
		}
	}
}

// fill adds rows that do not compress.
func (p *postgres) fill(t *testing.T, rows int) {
	t.Helper()
	p.sql(t, "CREATE TABLE IF NOT EXISTS things (id int, text text)")
	p.sql(t, fmt.Sprintf("INSERT INTO things SELECT i, (SELECT string_agg(md5(random()::text || i || j), '') FROM generate_series(1, 40) j) FROM generate_series(1, %d) i", rows))
}

// sum identifies the content of the table.
func (p *postgres) sum(t *testing.T) string {
	t.Helper()
	return p.sql(t, "SELECT count(*) || ' ' || md5(string_agg(id || text, ',' ORDER BY id, text)) FROM things")
}

// lose stops the server and removes its data, as a failing disk does.
func (p *postgres) lose(t *testing.T) {
	t.Helper()
	p.process.stop(t)
	if err := os.RemoveAll(p.data); err != nil {
		t.Fatal(err)
	}
}

// pgBackRest archives, backs up and restores a database. It requires TLS.
func pgBackRest(t *testing.T, u *use) {
	p := newPostgres(t, u.name)
	e := u.c.tls
	e.url = strings.Replace(e.url, "127.0.0.1", "localhost", 1) // pgBackRest compares names only
	ca, err := os.ReadFile(e.ca)
	if err != nil {
		t.Fatal(err)
	}

	config := p.write(t, "pgbackrest.conf", fmt.Sprintf(`[global]
repo1-type=s3
repo1-path=/backups
repo1-s3-bucket=%s
repo1-s3-endpoint=%s
repo1-s3-region=%s
repo1-s3-uri-style=path
repo1-s3-key=%s
repo1-s3-key-secret=%s
repo1-storage-ca-file=%s
repo1-retention-full=1
start-fast=y
lock-path=%[7]s/lock
log-path=%[7]s/log
spool-path=%[7]s/spool
log-level-console=warn

[main]
pg1-path=%[7]s/data
pg1-port=%[8]s
pg1-socket-path=%[7]s
pg1-user=postgres
`, u.bucket, e.host(), region, e.accessKey, e.secret, p.write(t, "ca.pem", string(ca)), p.dir, p.port))
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		return p.run(t, environment(), append([]string{"pgbackrest", "--config=" + config, "--stanza=main"}, args...)...)
	}

	p.start(t, environment(), "archive_mode=on", "archive_command=pgbackrest --config="+config+" --stanza=main archive-push %p")
	want := ""
	u.does(t, "round trip", func(t *testing.T) {
		run(t, "stanza-create")
		p.fill(t, 20_000)
		run(t, "backup", "--type=full")
		p.fill(t, 1000)
		run(t, "backup", "--type=incr")
		p.fill(t, 10)
		want = p.sum(t)
		p.sql(t, "SELECT pg_switch_wal()")
		run(t, "check") // waits until the WAL is in the archive
		p.lose(t)
		run(t, "restore")
		p.start(t, environment(), "archive_mode=off", "hot_standby=off")
		if got := p.sum(t); got != want {
			t.Errorf("restored %q, not %q", got, want)
		}
	})
	if t.Failed() {
		return // each command would try again for minutes
	}

	u.does(t, "verify", func(t *testing.T) {
		if out := run(t, "verify"); strings.Contains(out, "ERROR") {
			t.Error(out)
		}
	})
	u.does(t, "listing", func(t *testing.T) {
		if out := run(t, "info"); strings.Count(out, "backup: ") != 2 {
			t.Error(out)
		}
	})
	u.does(t, "delete", func(t *testing.T) {
		p.process.stop(t)
		run(t, "stop")
		run(t, "stanza-delete", "--force")
		if left, err := newGoSDK(e).list(u.bucket, "backups/backup/main/"); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

// barmanCloud archives, backs up and restores a database with Barman's
// programs for object stores.
func barmanCloud(t *testing.T, u *use) {
	p, at := newPostgres(t, u.name), "s3://"+u.bucket+"/backups"
	env := u.awsEnvironment("HOME=" + p.dir)
	run := func(t *testing.T, program string, args ...string) string {
		t.Helper()
		return p.run(t, env, append([]string{program, "--endpoint-url", u.c.endpoint.url}, args...)...)
	}

	archive := "barman-cloud-wal-%s --endpoint-url " + u.c.endpoint.url + " " + at + " main "
	p.start(t, env, "archive_mode=on", "archive_command="+fmt.Sprintf(archive, "archive")+"%p")
	u.does(t, "round trip", func(t *testing.T) {
		p.fill(t, 20_000)
		run(t, "barman-cloud-backup", "-h", p.host, "-p", p.port, "-U", "postgres", "--immediate-checkpoint", "--name", "nightly", at, "main")
		p.fill(t, 1000)
		want := p.sum(t)
		segment := p.sql(t, "SELECT pg_walfile_name(pg_switch_wal())")
		for deadline := time.Now().Add(startTimeout); p.sql(t, "SELECT last_archived_wal >= '"+segment+"' FROM pg_stat_archiver") != "t"; time.Sleep(200 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s is not archived:\n%s", segment, tail(p.process.log, 20))
			}
		}

		p.lose(t)
		run(t, "barman-cloud-restore", at, "main", "nightly", p.data)
		p.run(t, env, "touch", filepath.Join(p.data, "recovery.signal"))
		p.start(t, env, "archive_mode=off", "hot_standby=off", "restore_command="+fmt.Sprintf(archive, "restore")+"%f %p")
		if got := p.sum(t); got != want {
			t.Errorf("restored %q, not %q", got, want)
		}
	})

	u.does(t, "listing", func(t *testing.T) {
		if out := run(t, "barman-cloud-backup-list", at, "main"); !strings.Contains(out, "nightly") {
			t.Error(out)
		}
	})
	u.does(t, "delete", func(t *testing.T) {
		run(t, "barman-cloud-backup-delete", "--backup-id", "nightly", at, "main")
		if left, err := newGoSDK(u.c.endpoint).list(u.bucket, "backups/main/base/"); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

// vmBackup backs up VictoriaMetrics twice and restores it.
func vmBackup(t *testing.T, u *use) {
	dir := storeDir(t)
	database := func(t *testing.T, name string) (*process, string) {
		t.Helper()
		address := freeAddress(t)
		p := start(t, "victoria-metrics-"+name, environment(), tool(t, "victoria-metrics"), "-storageDataPath="+filepath.Join(dir, name),
			"-httpListenAddr="+address, "-retentionPeriod=100y", "-memory.allowedBytes=100000000")
		p.waitFor(t, "http://"+address+"/health")
		return p, "http://" + address
	}

	backup := []string{"-customS3Endpoint=" + u.c.endpoint.url, "-loggerLevel=WARN"}
	p, url := database(t, "data")
	u.does(t, "round trip", func(t *testing.T) {
		for _, series := range []int{2000, 100} {
			importSeries(t, url, series)
			must(t, u.awsEnvironment(), tool(t, "vmbackup"), append(backup, "-storageDataPath="+filepath.Join(dir, "data"),
				"-snapshot.createURL="+url+"/snapshot/create", "-dst=s3://"+u.bucket+"/nightly")...)
		}
		want := exported(t, url)
		p.stop(t)

		must(t, u.awsEnvironment(), tool(t, "vmrestore"), append(backup, "-src=s3://"+u.bucket+"/nightly", "-storageDataPath="+filepath.Join(dir, "restored"))...)
		_, url := database(t, "restored")
		if got := exported(t, url); got != want || !strings.HasPrefix(got, "2100 ") {
			t.Errorf("restored %s, not %s", got, want)
		}
	})
}

// importSeries writes time series and makes them readable.
func importSeries(t *testing.T, url string, series int) {
	t.Helper()
	var lines bytes.Buffer
	for i := range series {
		fmt.Fprintf(&lines, `{"metric":{"__name__":"thing","of":"%d","number":"%d"},"values":[%d,%d.5],"timestamps":[%d,%d]}`+"\n",
			series, i, i, i, 1_700_000_000_000, 1_700_000_060_000)
	}
	for _, request := range []struct{ path, body string }{{"/api/v1/import", lines.String()}, {"/internal/force_flush", ""}} {
		response, err := http.Post(url+request.path, "application/json", strings.NewReader(request.body))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode >= 300 {
			t.Fatalf("%s: %s", request.path, response.Status)
		}
	}
}

// exported identifies all time series.
func exported(t *testing.T, url string) string {
	t.Helper()
	out := must(t, environment(), pythonCommand(), "-c", `import hashlib, sys, urllib.request
lines = sorted(urllib.request.urlopen(sys.argv[1] + "/api/v1/export?match[]=thing").read().splitlines())
print(len(lines), hashlib.sha256(b"\n".join(lines)).hexdigest())`, url)
	return strings.TrimSpace(out)
}

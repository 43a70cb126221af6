package access_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/access"
)

func TestReplace(t *testing.T) {
	d, err := access.New([]access.Client{client(grant("logs", access.Read))})
	if err != nil {
		t.Fatal(err)
	}

	before := d.Now()
	if err := d.Replace([]access.Client{
		{Name: "app", AccessKey: "AKNEW", Secret: "another secret"},
		{Name: "all", Anonymous: true},
	}); err != nil {
		t.Fatal(err)
	}

	if _, ok := d.Now().Client("AKAPP"); ok {
		t.Error("a client that was replaced is known")
	}
	if got, ok := d.Now().Secret("AKNEW"); got != "another secret" || !ok {
		t.Errorf("the new client's secret: %q, %v", got, ok)
	}

	if c, ok := d.Now().Anonymous(); !ok || c.Name != "all" {
		t.Errorf("anonymous: %v, %v", c, ok)
	}
	if _, ok := d.Now().Client(""); ok {
		t.Error("the anonymous client has an access key")
	}

	if c, ok := before.Client("AKAPP"); !ok || !c.May(access.Read, "logs") {
		t.Error("a view has changed")
	}
	if _, ok := before.Anonymous(); ok {
		t.Error("a view has changed: there is an anonymous client")
	}

	if err := d.Replace([]access.Client{{Name: "bad"}}); err == nil {
		t.Error("a client without access key was taken")
	}
	if _, ok := d.Now().Client("AKNEW"); !ok {
		t.Error("a bad list has changed something")
	}
}

// sessionFile is a file of temporary credentials, with a directory that
// uses it and a clock.
type sessionFile struct {
	t         *testing.T
	path      string
	now       time.Time
	directory *access.Directory
	reports   []string
}

var sessionsEnd = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func sessionText(accessKey, client string) string {
	return fmt.Sprintf(`{"access_key":%q,"secret_key":"secret of %s","session_token":"token of %s",`+
		`"expires":"2026-11-24T12:00:00Z","client":%q}`, accessKey, accessKey, accessKey, client)
}

func newSessionFile(t *testing.T, text string) *sessionFile {
	t.Helper()
	f := &sessionFile{t: t, path: filepath.Join(t.TempDir(), "sessions.json"), now: sessionsEnd.Add(-time.Hour)}
	f.write(text)
	d, err := access.New([]access.Client{client(grant("logs", access.Read)), {Name: "all", Anonymous: true}})
	if err != nil {
		t.Fatal(err)
	}

	sessions, err := access.OpenSessions(f.path, func() time.Time { return f.now }, func(err error, n int) {
		f.reports = append(f.reports, fmt.Sprint(n, " ", err))
	})
	if err != nil {
		t.Fatal(err)
	}

	d.UseSessions(sessions)
	f.directory = d
	return f
}

// write replaces the file with a rename.
func (f *sessionFile) write(text string) {
	f.t.Helper()
	if err := os.WriteFile(f.path+".new", []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		f.t.Fatal(err)
	}
}

func TestSessions(t *testing.T) {
	f := newSessionFile(t, "["+sessionText("ASIA1", "app")+","+sessionText("AKAPP", "app")+","+
		sessionText("ASIANOBODY", "nobody")+","+sessionText("ASIAALL", "all")+"]")
	v := f.directory.Now()
	if c, ok := v.Client("ASIA1"); !ok || c.Name != "app" || !c.May(access.Read, "logs") {
		t.Errorf("the client of a session: %v, %v", c, ok)
	}

	if got, ok := v.Secret("ASIA1"); got != "secret of ASIA1" || !ok {
		t.Errorf("the secret of a session: %q, %v", got, ok)
	}
	if token, expires, ok := v.Session("ASIA1"); token != "token of ASIA1" || !expires.Equal(sessionsEnd) || !ok {
		t.Errorf("Session: %q, %v, %v", token, expires, ok)
	}

	if got, _ := v.Secret("AKAPP"); got != secret {
		t.Errorf("a session has taken a client's access key: %q", got)
	}

	for _, none := range []string{"AKAPP", "ASIANOBODY", "ASIAALL", "ASIA2", ""} {
		if token, _, ok := v.Session(none); token != "" || ok {
			t.Errorf("Session(%q): %q, %v", none, token, ok)
		}
	}

	for _, none := range []string{"ASIANOBODY", "ASIAALL", "ASIA2", ""} {
		if got, ok := v.Secret(none); got != "" || ok {
			t.Errorf("Secret(%q): %q, %v", none, got, ok)
		}
	}
}

func TestSessionsAreReadAgain(t *testing.T) {
	f := newSessionFile(t, "["+sessionText("ASIA1", "app")+"]")
	known := func(accessKey string) bool { _, ok := f.directory.Now().Secret(accessKey); return ok }
	f.write("[" + sessionText("ASIA2", "app") + "]")

	if !known("ASIA1") || known("ASIA2") {
		t.Error("the file was looked at within a second")
	}

	f.now = f.now.Add(2 * time.Second)
	if known("ASIA1") || !known("ASIA2") {
		t.Error("the file was not read again")
	}

	for _, bad := range []string{"", "[", "{}", "null", "[] []", `[{"access_key":"A"}]`, "[" +
		sessionText("A", "app") + "," + sessionText("A", "app") + "]"} {
		f.write(bad)
		f.now = f.now.Add(2 * time.Second)
		if !known("ASIA2") {
			t.Errorf("%q has ended the sessions there were", bad)
		}
	}

	f.now = f.now.Add(2 * time.Second)
	known("")

	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}

	f.now = f.now.Add(2 * time.Second)
	if !known("ASIA2") {
		t.Error("the removal of the file has ended the sessions there were")
	}

	f.write("[]")
	f.now = f.now.Add(2 * time.Second)

	if known("ASIA2") {
		t.Error("a session that was taken away is known")
	}
	if len(f.reports) != 8 || f.reports[0] != "1 <nil>" || f.reports[len(f.reports)-1] != "0 <nil>" {
		t.Errorf("%d reports: %q", len(f.reports), f.reports)
	}

	for _, r := range f.reports {
		if strings.Contains(r, "secret of") || strings.Contains(r, "token of") {
			t.Errorf("a secret is in a report: %s", r)
		}
	}
}

func TestOpenSessionsRefuses(t *testing.T) {
	good := sessionText("ASIA1", "app")
	for name, text := range map[string]string{
		"nothing":          "",
		"no list":          good,
		"an unknown field": strings.Replace("["+good+"]", `"client"`, `"klient":"a","client"`, 1),
		"no token":         strings.Replace("["+good+"]", "token of ASIA1", "", 1),
		"a short secret":   strings.Replace("["+good+"]", "secret of ASIA1", "short", 1),
		"no end":           strings.Replace("["+good+"]", `"expires":"2026-11-24T12:00:00Z",`, "", 1),
		"no time":          strings.Replace("["+good+"]", "2026-11-24T12:00:00Z", "tomorrow", 1),
		"no client":        strings.Replace("["+good+"]", `"client":"app"`, `"client":""`, 1),
		"a null":           "[null]",
	} {
		path := filepath.Join(t.TempDir(), "sessions.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}

		_, err := access.OpenSessions(path, time.Now, func(error, int) {})
		if err == nil || strings.Contains(err.Error(), "secret of") || strings.Contains(err.Error(), "token of") {
			t.Errorf("%s: %v", name, err)
		}
	}

	path := filepath.Join(t.TempDir(), "sessions.json")
	if _, err := access.OpenSessions(path, time.Now, func(error, int) {}); err == nil {
		t.Error("a file that is not there was opened")
	}
	if err := os.WriteFile(path, []byte("["+good+"]"), 0o600); err != nil {
		t.Fatal(err)
	}

	if err := os.Chmod(path, 0o604); err != nil {
		t.Fatal(err)
	}
	if _, err := access.OpenSessions(path, time.Now, func(error, int) {}); err == nil ||
		!strings.Contains(err.Error(), "all users") {
		t.Errorf("a file that all may read: %v", err)
	}
}

func TestSessionIsNotPrinted(t *testing.T) {
	s := access.Session{AccessKey: "ASIA1", Secret: secret, Token: "the token"}
	for _, text := range []string{fmt.Sprint(s), fmt.Sprintf("%+v", s), fmt.Sprintf("%#v", &s)} {
		if strings.Contains(text, secret) || strings.Contains(text, "the token") {
			t.Errorf("it is in %s", text)
		}
	}
	var back access.Session
	if err := json.Unmarshal([]byte(sessionText("ASIA1", "app")), &back); err != nil || back.Client != "app" {
		t.Errorf("%v, %v", back, err)
	}
}

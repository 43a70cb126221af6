package access

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// Session is temporary credentials, which stand for a client.
type Session struct {
	AccessKey string    `json:"access_key"`
	Secret    string    `json:"secret_key"`
	Token     string    `json:"session_token"`
	Expires   time.Time `json:"expires"` // RFC 3339
	Client    string    `json:"client"`  // name
}

// String is the access key: the rest is secret, or of the client's.
func (s Session) String() string { return s.AccessKey }

// GoString is String.
func (s Session) GoString() string { return s.String() }

const (
	maxSessionFile   = 16 << 20    // in bytes, of some 10,000 sessions
	sessionInterval  = time.Second // between two looks at the file
	minSessionSecret = 8           // characters, of secret and token, as in the configuration
)

// Sessions are the temporary credentials in a file: a JSON list of objects with the fields of Session, all of them. It is
// looked at once a second at most, when somebody is asked for, and read again if it has changed. A file that is away or
// bad changes nothing: what was read before stays in force until it expires.
type Sessions struct {
	path   string
	clock  func() time.Time
	report func(err error, sessions int) // of each reading after the first

	mu      sync.Mutex
	looked  time.Time
	read    fingerprint // of the file when it was last read
	failed  string      // what was last reported as wrong, so as not to repeat it
	current map[string]*Session
}

// fingerprint tells a file from what it was before.
type fingerprint struct {
	modified time.Time
	size     int64
	inode    uint64
}

// OpenSessions reads the file for the first time. report is told of each later reading: its error, or how many sessions
// there are. It must not be nil.
func OpenSessions(path string, now func() time.Time, report func(err error, sessions int)) (*Sessions, error) {
	s := &Sessions{path: path, clock: now, report: report, looked: now()}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	return s, nil
}

// now returns the sessions in force. The map never changes.
func (s *Sessions) now() map[string]*Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock()
	if since := now.Sub(s.looked); since >= 0 && since < sessionInterval {
		return s.current
	}
	s.looked = now
	info, err := os.Stat(s.path)
	if err == nil && fingerprintOf(info) == s.read {
		return s.current
	}
	switch err := s.load(); {
	case err == nil:
		s.failed = ""
		s.report(nil, len(s.current))
	case err.Error() != s.failed:
		s.failed = err.Error()
		s.report(err, len(s.current))
	}
	return s.current
}

func (s *Sessions) load() error {
	data, read, err := readSessionFile(s.path)
	if err != nil {
		return err
	}
	sessions, err := parseSessions(data)
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	s.current, s.read = sessions, read
	return nil
}

// readSessionFile reads the file, which holds secrets: not all users may access it.
func readSessionFile(path string) ([]byte, fingerprint, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a named pipe would wait for ever
	if err != nil {
		return nil, fingerprint{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fingerprint{}, err
	case !info.Mode().IsRegular():
		return nil, fingerprint{}, fmt.Errorf("%s is not a regular file", path)
	case info.Mode().Perm()&0o007 != 0:
		return nil, fingerprint{}, fmt.Errorf("%s has mode %04o: all users may access it (chmod o= it)", path, info.Mode().Perm())
	case info.Size() > maxSessionFile:
		return nil, fingerprint{}, fmt.Errorf("%s is larger than %d bytes", path, maxSessionFile)
	}
	var data bytes.Buffer
	if _, err := data.ReadFrom(io.LimitReader(f, maxSessionFile)); err != nil {
		return nil, fingerprint{}, err
	}
	return data.Bytes(), fingerprintOf(info), nil
}

func fingerprintOf(info os.FileInfo) fingerprint {
	out := fingerprint{modified: info.ModTime(), size: info.Size()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		out.inode = stat.Ino
	}
	return out
}

// parseSessions reads the list. Errors say which entry is bad, and nothing of what is in it: it may be a secret.
func parseSessions(data []byte) (map[string]*Session, error) {
	var list []*Session
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&list); err != nil {
		return nil, errors.New("it is no JSON list of sessions with the fields access_key, secret_key, session_token, expires and client")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something stands behind the JSON list of sessions")
	}
	if list == nil {
		return nil, errors.New("it holds no list; for no sessions, write []")
	}
	out := make(map[string]*Session, len(list))
	for i, session := range list {
		switch {
		case session == nil, session.AccessKey == "", session.Client == "", session.Expires.IsZero():
			return nil, fmt.Errorf("session %d has no access_key, client or expires", i+1)
		case len(session.Secret) < minSessionSecret, len(session.Token) < minSessionSecret:
			return nil, fmt.Errorf("session %d has fewer than %d characters in secret_key or session_token", i+1, minSessionSecret)
		case out[session.AccessKey] != nil:
			return nil, fmt.Errorf("session %d has the access_key of another one", i+1)
		}
		out[session.AccessKey] = session
	}
	return out, nil
}

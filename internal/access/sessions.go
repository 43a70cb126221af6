package access

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// Session contains temporary credentials for a client.
type Session struct {
	AccessKey string    `json:"access_key"`
	Secret    string    `json:"secret_key"`
	Token     string    `json:"session_token"`
	Expires   time.Time `json:"expires"` // RFC 3339
	Client    string    `json:"client"`  // name of the client
}

// String returns only the access key, because the other fields are secret
// or belong to the client.
func (s Session) String() string { return s.AccessKey }

// GoString returns the same as String.
func (s Session) GoString() string { return s.String() }

const (
	maxSessionFile   = 16 << 20 // bytes, for about 10,000 sessions
	minSessionSecret = 8        // minimum length of secrets and tokens, as in the configuration
)

// Sessions are the temporary credentials in a file: a JSON list of objects
// with all the fields of Session. When a session is looked up, the file is
// checked at most once a second, and reloaded if it has changed. If the
// file is missing or malformed, the previous sessions remain valid until
// they expire.
type Sessions struct {
	file *livefile.File[map[string]*Session]
}

// OpenSessions loads the file. report is called after each later reload,
// with its error or the number of sessions. It must not be nil.
func OpenSessions(path string, now func() time.Time, report func(err error, sessions int)) (*Sessions, error) {
	sessions := 0
	file, err := livefile.Open(livefile.Config[map[string]*Session]{
		Paths: []string{path},
		Load: func() (map[string]*Session, error) {
			read, err := loadSessions(path)
			if err == nil {
				sessions = len(read)
			}
			return read, err
		},
		Now:    now,
		Report: func(err error) { report(err, sessions) },
	})
	if err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}

	return &Sessions{file: file}, nil
}

// now returns the current sessions. The map must not be modified.
func (s *Sessions) now() map[string]*Session { return s.file.Get() }

func loadSessions(path string) (map[string]*Session, error) {
	data, err := readSessionFile(path)
	if err != nil {
		return nil, err
	}

	sessions, err := parseSessions(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}

	return sessions, nil
}

// readSessionFile reads the file. It contains secrets, so it must not be
// accessible to all users.
func readSessionFile(path string) ([]byte, error) {
	f, info, err := livefile.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()

	switch {
	case info.Mode().Perm()&0o007 != 0:
		return nil, fmt.Errorf("%s has mode %04o: all users can access it (fix: chmod o= FILE)",
			path, info.Mode().Perm())
	case info.Size() > maxSessionFile:
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxSessionFile)
	}

	var data bytes.Buffer
	if _, err := data.ReadFrom(io.LimitReader(f, maxSessionFile)); err != nil {
		return nil, err
	}

	return data.Bytes(), nil
}

// parseSessions parses the list. Errors contain the number of the bad entry
// but none of its content, which may be secret.
func parseSessions(data []byte) (map[string]*Session, error) {
	var list []*Session
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()

	if err := d.Decode(&list); err != nil {
		return nil, errors.New("not a JSON list of sessions with the fields " +
			"access_key, secret_key, session_token, expires and client")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("unexpected data after the JSON list of sessions")
	}

	if list == nil {
		return nil, errors.New("the file contains null; write [] if there are no sessions")
	}

	out := make(map[string]*Session, len(list))
	for i, session := range list {
		switch {
		case session == nil, session.AccessKey == "", session.Client == "", session.Expires.IsZero():
			return nil, fmt.Errorf("session %d has no access_key, client or expires", i+1)
		case len(session.Secret) < minSessionSecret, len(session.Token) < minSessionSecret:
			return nil, fmt.Errorf("session %d has fewer than %d characters in secret_key or session_token", i+1,
				minSessionSecret)
		case out[session.AccessKey] != nil:
			return nil, fmt.Errorf("session %d has the same access_key as another session", i+1)
		}

		out[session.AccessKey] = session
	}

	return out, nil
}

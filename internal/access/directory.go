package access

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Directory contains the clients, and the sessions with temporary
// credentials. It is safe for concurrent use.
type Directory struct {
	current  atomic.Pointer[clients]
	sessions atomic.Pointer[Sessions] // nil for none
}

// clients is an immutable set of clients.
type clients struct {
	byAccessKey map[string]*Client
	byName      map[string]*Client
	anonymous   *Client // nil for none
}

// New returns a Directory with copies of the clients in list. It refuses
// clients without a name, access key or secret, duplicate names or access
// keys, more than one anonymous client, empty bucket patterns, and unknown
// actions. Errors contain names of clients but no secrets.
func New(list []Client) (*Directory, error) {
	d := &Directory{}
	if err := d.Replace(list); err != nil {
		return nil, err
	}
	return d, nil
}

// Replace replaces the clients for subsequent requests. If it returns an
// error, nothing has changed.
func (d *Directory) Replace(list []Client) error {
	set, err := newClients(list)
	if err != nil {
		return err
	}
	d.current.Store(set)
	return nil
}

// UseSessions sets the source of temporary credentials for subsequent requests;
// nil for none.
func (d *Directory) UseSessions(s *Sessions) { d.sessions.Store(s) }

// CurrentSessions returns the source of temporary credentials; nil for none.
func (d *Directory) CurrentSessions() *Sessions { return d.sessions.Load() }

// CheckSessions reloads the temporary credentials now if their file has
// changed. Errors are reported as usual.
func (d *Directory) CheckSessions() {
	if s := d.sessions.Load(); s != nil {
		_ = s.file.Check()
	}
}

// Clients returns the number of clients, including the anonymous one.
func (d *Directory) Clients() int { return len(d.current.Load().byName) }

// Now returns the current clients and sessions. Use one View for a whole
// request, so that a concurrent change cannot combine one client's secret
// with another client's grants.
func (d *Directory) Now() View {
	v := View{clients: d.current.Load()}
	if s := d.sessions.Load(); s != nil {
		v.sessions = s.now()
	}
	return v
}

// View is an immutable snapshot of the clients and sessions.
type View struct {
	clients  *clients
	sessions map[string]*Session // by access key
}

// Client returns the client with an access key. The caller must not modify
// it.
func (v View) Client(accessKey string) (*Client, bool) {
	if c, ok := v.clients.byAccessKey[accessKey]; ok {
		return c, true
	}
	if s := v.sessions[accessKey]; s != nil {
		c, ok := v.clients.byName[s.Client]
		return c, ok && !c.Anonymous
	}

	return nil, false
}

// Secret returns the secret key for an access key.
func (v View) Secret(accessKey string) (string, bool) {
	c, ok := v.Client(accessKey)
	switch {
	case !ok:
		return "", false
	case c.AccessKey == accessKey:
		return c.Secret, true
	default:
		return v.sessions[accessKey].Secret, true
	}
}

// Session returns the session token that belongs to an access key, and when
// it expires. ok is false for a client's own access key, which has no
// token.
func (v View) Session(accessKey string) (token string, expires time.Time, ok bool) {
	s := v.sessions[accessKey]
	if c, known := v.Client(accessKey); !known || c.AccessKey == accessKey {
		return "", time.Time{}, false
	}
	return s.Token, s.Expires, true
}

// Anonymous returns the client for unsigned requests.
func (v View) Anonymous() (*Client, bool) { return v.clients.anonymous, v.clients.anonymous != nil }

func newClients(list []Client) (*clients, error) {
	set := &clients{byAccessKey: make(map[string]*Client, len(list)), byName: make(map[string]*Client, len(list))}
	for _, c := range list {
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("access: client %q: %w", c.Name, err)
		}
		if set.byName[c.Name] != nil {
			return nil, fmt.Errorf("access: two clients are named %q", c.Name)
		}

		clone := c.clone()
		set.byName[c.Name] = clone

		if c.Anonymous {
			if set.anonymous != nil {
				return nil, fmt.Errorf("access: clients %q and %q are both anonymous", set.anonymous.Name, c.Name)
			}
			set.anonymous = clone
			continue
		}

		if other := set.byAccessKey[c.AccessKey]; other != nil {
			return nil, fmt.Errorf("access: clients %q and %q have the same access key", other.Name, c.Name)
		}
		set.byAccessKey[c.AccessKey] = clone
	}

	return set, nil
}

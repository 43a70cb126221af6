package access

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Directory is the clients, and those who act for one with temporary
// credentials. It is safe for concurrent use.
type Directory struct {
	current  atomic.Pointer[clients]
	sessions *Sessions // nil for none
}

// clients is a set that does not change.
type clients struct {
	byAccessKey map[string]*Client
	byName      map[string]*Client
	anonymous   *Client // nil for none
}

// New returns a Directory of copies of list. It refuses a client without name,
// access key or secret, two of one name or access key, two that are anonymous,
// an empty bucket pattern, and an unknown action. Errors name clients, and
// hold no secret.
func New(list []Client) (*Directory, error) {
	d := &Directory{}
	if err := d.Replace(list); err != nil {
		return nil, err
	}
	return d, nil
}

// Replace puts other clients in the place of those that there are, from the
// next request on. After an error nothing has changed.
func (d *Directory) Replace(list []Client) error {
	set, err := newClients(list)
	if err != nil {
		return err
	}
	d.current.Store(set)
	return nil
}

// UseSessions has temporary credentials looked up in s. It must be called
// before the first request.
func (d *Directory) UseSessions(s *Sessions) { d.sessions = s }

// CheckSessions reads the temporary credentials now if they have changed. What
// is wrong with them is reported as at any other time.
func (d *Directory) CheckSessions() {
	if d.sessions != nil {
		_ = d.sessions.file.Check()
	}
}

// Clients returns how many clients there are, the anonymous one among them.
func (d *Directory) Clients() int { return len(d.current.Load().byName) }

// Now returns who there is at this moment. One request is judged by one View,
// so that what is replaced meanwhile never makes the secret of one client the
// grants of another.
func (d *Directory) Now() View {
	v := View{clients: d.current.Load()}
	if d.sessions != nil {
		v.sessions = d.sessions.now()
	}
	return v
}

// View is who there is at one moment.
type View struct {
	clients  *clients
	sessions map[string]*Session // by access key
}

// Client returns the client of an access key; the caller must not change it.
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

// Secret returns the secret of an access key.
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

// Session returns the token that must come with an access key, and the time
// from which on it does not help any more. ok is false for a client's own
// access key, with which no token must come.
func (v View) Session(accessKey string) (token string, expires time.Time, ok bool) {
	s := v.sessions[accessKey]
	if c, known := v.Client(accessKey); !known || c.AccessKey == accessKey {
		return "", time.Time{}, false
	}
	return s.Token, s.Expires, true
}

// Anonymous returns the client that stands for those who sign nothing.
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
			return nil, fmt.Errorf("access: clients %q and %q have one access key", other.Name, c.Name)
		}
		set.byAccessKey[c.AccessKey] = clone
	}

	return set, nil
}

// Package access holds the identities of the proxy's clients and what each may do.
//
// What no grant allows is denied. The package knows nothing of requests: it maps an access key to a client, and answers
// whether that client may do one action on one bucket.
package access

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cmekproxy/cmekproxy/internal/glob"
)

// Action is something that a client does.
type Action string

// The actions. None implies another.
const (
	Read   Action = "read"   // object data and metadata
	Write  Action = "write"  // put, copy to, upload
	Delete Action = "delete" // objects
	List   Action = "list"   // buckets and what is in them
	Admin  Action = "admin"  // create, delete and configure buckets
)

// Grant allows each of its actions on each bucket that one of its patterns matches.
type Grant struct {
	// Buckets are names in which * stands for any run of characters, an empty one too. Nothing else is special.
	Buckets []string
	Actions []Action
}

// Client is an identity. It prints its name and access key, never its secret.
type Client struct {
	Name      string // for logs; unique
	AccessKey string // what a request names; unique
	Secret    string `json:"-"` // what a request is signed with
	Allow     []Grant
}

// May reports whether the client may do action on bucket. The bucket "" stands for the service itself, as in a listing
// of all buckets; of all patterns only those made of nothing but * match it.
func (c *Client) May(action Action, bucket string) bool {
	for _, g := range c.Allow {
		if slices.Contains(g.Actions, action) && g.covers(bucket) {
			return true
		}
	}
	return false
}

func (g *Grant) covers(bucket string) bool {
	return slices.ContainsFunc(g.Buckets, func(pattern string) bool { return glob.Match(pattern, bucket) })
}

// String is the client's name and access key.
func (c Client) String() string { return c.Name + " (" + c.AccessKey + ")" }

// GoString is String: %#v must not show the secret either.
func (c Client) GoString() string { return c.String() }

// Directory is a fixed set of clients. It is safe for concurrent use.
type Directory struct {
	byAccessKey map[string]*Client
}

// New returns a Directory of copies of clients. It refuses one without name, access key or secret, two of one name or
// access key, an empty bucket pattern, and an unknown action. Errors name clients, and hold no secret.
func New(clients []Client) (*Directory, error) {
	d := &Directory{byAccessKey: make(map[string]*Client, len(clients))}
	names := make(map[string]bool, len(clients))
	for _, c := range clients {
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("access: client %q: %w", c.Name, err)
		}
		if names[c.Name] {
			return nil, fmt.Errorf("access: two clients are named %q", c.Name)
		}
		if other := d.byAccessKey[c.AccessKey]; other != nil {
			return nil, fmt.Errorf("access: clients %q and %q have one access key", other.Name, c.Name)
		}
		names[c.Name] = true
		d.byAccessKey[c.AccessKey] = c.clone()
	}
	return d, nil
}

// Client returns the client of an access key; the caller must not change it.
func (d *Directory) Client(accessKey string) (*Client, bool) {
	c, ok := d.byAccessKey[accessKey]
	return c, ok
}

// Secret returns the secret of an access key.
func (d *Directory) Secret(accessKey string) (string, bool) {
	c, ok := d.byAccessKey[accessKey]
	if !ok {
		return "", false
	}
	return c.Secret, true
}

func (c *Client) check() error {
	switch {
	case c.Name == "":
		return errors.New("no name")
	case c.AccessKey == "":
		return errors.New("no access key")
	case c.Secret == "":
		return errors.New("no secret") // an empty one is known to all
	}
	for _, g := range c.Allow {
		if slices.Contains(g.Buckets, "") {
			return errors.New("an empty bucket pattern")
		}
		for _, a := range g.Actions {
			if !slices.Contains([]Action{Read, Write, Delete, List, Admin}, a) {
				return fmt.Errorf("unknown action %q", a)
			}
		}
	}
	return nil
}

// clone shares nothing with c: what is granted must not change under way.
func (c *Client) clone() *Client {
	clone := *c
	clone.Allow = make([]Grant, len(c.Allow))
	for i, g := range c.Allow {
		clone.Allow[i] = Grant{Buckets: slices.Clone(g.Buckets), Actions: slices.Clone(g.Actions)}
	}
	return &clone
}

// Package access holds the identities of the proxy's clients and what each may
// do.
//
// What no grant allows is denied. The package knows nothing of requests: it
// maps an access key to a client, and answers whether that client may do one
// action on one bucket or object.
//
//	access.go     clients and their grants
//	directory.go  who there is at a moment, replaced as a whole
//	sessions.go   temporary credentials, from a file that is read again when it changes
package access

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/glob"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
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

	Lock       Action = "lock"        // keep objects in COMPLIANCE mode: nobody can delete them before their time
	StoreAdmin Action = "store_admin" // open buckets to others than the proxy: policies, websites, notifications
)

var actions = []Action{Read, Write, Delete, List, Admin, Lock, StoreAdmin}

// Grant allows each of its actions on each bucket that one of its patterns
// matches, or on some objects in it.
type Grant struct {
	// Buckets are names in which * stands for any run of characters, an empty
	// one too. Nothing else is special.
	Buckets []string
	// Prefixes are beginnings of object keys, taken literally. None, or one
	// that is empty: every object, and the bucket itself.
	Prefixes []string
	Actions  []Action
}

// Client is an identity. It prints its name and access key, never its secret.
type Client struct {
	Name      string // for logs; unique
	AccessKey string // what a request names; unique
	Secret    string `json:"-"` // what a request is signed with
	Anonymous bool   // those who sign nothing; there are no AccessKey and Secret then
	Allow     []Grant
	// LiteralKeys says that the store takes . and .. in a key for nothing but
	// themselves. False: no prefix covers a key with such a segment.
	LiteralKeys bool
}

// May reports whether the client may do action on a bucket as a whole, for
// which it takes a grant without prefixes. The bucket "" stands for the
// service itself, as in a listing of all buckets; of all patterns only those
// made of nothing but * match it.
func (c *Client) May(action Action, bucket string) bool {
	return c.allows(action, bucket, (*Grant).coversAll)
}

// MayObject reports whether the client may do action on an object.
func (c *Client) MayObject(action Action, bucket, key string) bool {
	return c.allows(action, bucket, func(g *Grant) bool { return g.coversAll() || c.hasPrefix(g, key) })
}

// MayList reports whether the client may list all keys that begin with prefix.
func (c *Client) MayList(bucket, prefix string) bool { return c.MayObject(List, bucket, prefix) }

// MaySome reports whether the client may do action on the bucket or on some
// objects in it.
func (c *Client) MaySome(action Action, bucket string) bool {
	return c.allows(action, bucket, func(*Grant) bool { return true })
}

// Sees reports whether the client may do anything at all in the bucket.
func (c *Client) Sees(bucket string) bool {
	return slices.ContainsFunc(actions, func(a Action) bool { return c.MaySome(a, bucket) })
}

func (c *Client) allows(action Action, bucket string, covers func(*Grant) bool) bool {
	return slices.ContainsFunc(c.Allow, func(g Grant) bool {
		return slices.Contains(g.Actions, action) && covers(&g) &&
			slices.ContainsFunc(g.Buckets, func(pattern string) bool { return glob.Match(pattern, bucket) })
	})
}

func (g *Grant) coversAll() bool { return len(g.Prefixes) == 0 || slices.Contains(g.Prefixes, "") }

// hasPrefix reports whether a key begins with one of the prefixes of a grant,
// and whether that means anything.
func (c *Client) hasPrefix(g *Grant, key string) bool {
	if !c.LiteralKeys && keyname.HasDots(key) {
		return false
	}
	return slices.ContainsFunc(g.Prefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

// String is the client's name and access key.
func (c Client) String() string { return c.Name + " (" + c.AccessKey + ")" }

// GoString is String: %#v must not show the secret either.
func (c Client) GoString() string { return c.String() }

func (c *Client) check() error {
	switch {
	case c.Name == "":
		return errors.New("no name")
	case c.Anonymous && (c.AccessKey != "" || c.Secret != ""):
		return errors.New("anonymous, and with an access key or a secret")
	case c.Anonymous:
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
			if !slices.Contains(actions, a) {
				return fmt.Errorf("unknown action %q", a)
			}
			if c.Anonymous && (a == Admin || a == Lock || a == StoreAdmin) {
				return fmt.Errorf("anonymous, and with the action %s", a)
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
		clone.Allow[i] = Grant{
			Buckets: slices.Clone(g.Buckets), Prefixes: slices.Clone(g.Prefixes), Actions: slices.Clone(g.Actions),
		}
	}
	return &clone
}

// Package access manages the proxy's clients and their permissions.
//
// Everything that no grant allows is denied. The package is independent of
// requests: it maps an access key to a client, and decides whether that
// client may perform an action on a bucket or an object.
//
//	access.go     clients and their grants
//	directory.go  the current clients and sessions
//	sessions.go   temporary credentials, from a file that is reloaded on changes
package access

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/glob"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
)

// Action is a kind of operation.
type Action string

// The actions. None implies another.
const (
	Read   Action = "read"   // read objects and their metadata
	Write  Action = "write"  // put, copy to, upload
	Delete Action = "delete" // delete objects
	List   Action = "list"   // list buckets and objects
	Admin  Action = "admin"  // create, delete and configure buckets

	// Lock is to retain objects in COMPLIANCE mode, so that they cannot be
	// deleted until a date.
	Lock Action = "lock"
	// StoreAdmin is to give others direct access to buckets in the store:
	// policies, websites, notifications.
	StoreAdmin Action = "store_admin"
)

var actions = []Action{Read, Write, Delete, List, Admin, Lock, StoreAdmin}

// Grant allows all its actions on all buckets that match one of its
// patterns, or on some objects in these buckets.
type Grant struct {
	// Buckets are bucket names; "*" matches any run of characters, even an
	// empty one. No other character is special.
	Buckets []string
	// Prefixes are literal prefixes of object keys. If there are none, or
	// one is empty, the grant covers all objects and the bucket itself.
	Prefixes []string
	Actions  []Action
}

// Client is a user of the proxy. Its String method does not show the
// secret.
type Client struct {
	Name      string // unique; used in logs
	AccessKey string // unique; sent in requests
	Secret    string `json:"-"` // signs requests
	Anonymous bool   // the client of unsigned requests, which has no AccessKey and Secret
	Allow     []Grant
	// Group is the name of the clients that share GroupLimit, the number of
	// concurrent requests; "" for none. A GroupLimit of 0 is that of a single
	// client.
	Group      string
	GroupLimit int
	// LiteralKeys is set if the store gives "." and ".." in object keys no
	// special meaning. If it is false, no prefix covers a key with such a
	// segment.
	LiteralKeys bool
}

// May reports whether the client may perform action on a whole bucket,
// which requires a grant without prefixes. The bucket "" means the service,
// as in a listing of all buckets; only patterns of nothing but "*" match
// it.
func (c *Client) May(action Action, bucket string) bool {
	return c.allows(action, bucket, (*Grant).coversAll)
}

// MayObject reports whether the client may perform action on an object.
func (c *Client) MayObject(action Action, bucket, key string) bool {
	return c.allows(action, bucket, func(g *Grant) bool { return g.coversAll() || c.hasPrefix(g, key) })
}

// MayList reports whether the client may list all keys with a prefix.
func (c *Client) MayList(bucket, prefix string) bool { return c.MayObject(List, bucket, prefix) }

// MaySome reports whether the client may perform action on the bucket or on
// some objects in it.
func (c *Client) MaySome(action Action, bucket string) bool {
	return c.allows(action, bucket, func(*Grant) bool { return true })
}

// Sees reports whether the client may perform any action in the bucket.
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

// hasPrefix reports whether a grant covers a key through one of its
// prefixes.
func (c *Client) hasPrefix(g *Grant, key string) bool {
	if !c.LiteralKeys && keyname.HasDots(key) {
		return false
	}
	return slices.ContainsFunc(g.Prefixes, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

// String returns the client's name and access key.
func (c Client) String() string { return c.Name + " (" + c.AccessKey + ")" }

// GoString returns the same as String, so that %#v does not show the
// secret.
func (c Client) GoString() string { return c.String() }

func (c *Client) check() error {
	switch {
	case c.Name == "":
		return errors.New("no name")
	case c.Anonymous && (c.AccessKey != "" || c.Secret != ""):
		return errors.New("an anonymous client cannot have an access key or a secret")
	case c.Anonymous:
	case c.AccessKey == "":
		return errors.New("no access key")
	case c.Secret == "":
		return errors.New("no secret") // an empty secret is known to everyone
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
				return fmt.Errorf("an anonymous client cannot have the action %s", a)
			}
		}
	}

	return nil
}

// clone returns a deep copy of c, so that later changes to c do not change
// grants.
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

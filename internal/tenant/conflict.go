package tenant

import (
	"fmt"
	"slices"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// conflict is why two tenants cannot both be served.
type conflict struct{ a, b, what string }

func (c conflict) of(name string) error {
	other := c.a
	if name == c.a {
		other = c.b
	}
	return fmt.Errorf("tenants %s and %s both have %s: change the file of one of them", name, other, c.what)
}

// settle removes from next what is in conflict: a tenant that has changed is
// as before, and one that is new is not served. The tenants of the current
// State do not conflict, so this ends.
func (d *Dir) settle(next *State) {
	for {
		settled := true
		for _, c := range conflicts(next) {
			for _, name := range []string{c.a, c.b} {
				before, now := d.accepted.Tenants[name], next.Tenants[name]
				if now == nil || now == before {
					continue
				}

				settled = false
				next.problem(d.pathOf(name), name, before != nil, c.of(name))
				delete(next.Tenants, name)
				if before != nil {
					next.Tenants[name] = before
				}
			}
		}
		if settled {
			return
		}
	}
}

// conflicts returns conflicts so that each tenant that has one is in one of
// them. It depends on nothing but the tenants.
func conflicts(s *State) (found []conflict) {
	owners, accessKeys, clients := make(map[scope][]string), make(map[string]string), make(map[string]string)
	names := s.Names()
	for _, name := range names {
		for one := range scopesOf(s.Tenants[name]) {
			owners[one] = append(owners[one], name)
		}

		for _, c := range s.Tenants[name].Clients {
			if other, ok := clients[c.Name]; ok {
				found = append(found, conflict{other, name, fmt.Sprintf("a client named %q", c.Name)})
			}
			if other, ok := accessKeys[c.AccessKey]; ok {
				found = append(found, conflict{other, name, "a client with the same access_key"})
			}
			clients[c.Name], accessKeys[c.AccessKey] = name, name
		}
	}

	for _, name := range names {
		for one := range scopesOf(s.Tenants[name]) {
			for above := range one.above {
				// One is enough: each of several is compared with another.
				i := slices.IndexFunc(owners[above], func(other string) bool { return other != name })
				if i >= 0 {
					found = append(found, conflict{owners[above][i], name, "objects in " + one.String()})
				}
			}
		}
	}
	return found
}

// scope is all objects of a bucket with a prefix; "" for all of them.
type scope struct{ bucket, prefix string }

func (s scope) String() string { return fmt.Sprintf("s3://%s/%s", s.bucket, s.prefix) }

// above yields the scopes that include this one, and itself. Prefixes end
// with "/".
func (s scope) above(yield func(scope) bool) {
	if !yield(scope{s.bucket, ""}) {
		return
	}
	for i, c := range s.prefix {
		if c == '/' && !yield(scope{s.bucket, s.prefix[:i+1]}) {
			return
		}
	}
}

func scopesOf(t *config.Tenant) func(yield func(scope) bool) {
	return func(yield func(scope) bool) {
		for _, o := range t.Objects {
			prefixes := o.Prefixes
			if len(prefixes) == 0 {
				prefixes = []string{""}
			}
			for _, bucket := range o.Buckets {
				for _, prefix := range prefixes {
					if !yield(scope{bucket, prefix}) {
						return
					}
				}
			}
		}
	}
}

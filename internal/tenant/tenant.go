// Package tenant keeps the tenants of a directory: one file for each, which are
// added, changed and removed while the proxy runs.
//
// A file with an error leaves its tenant as it was before, and no other tenant
// is affected. Tenants must not share objects, names of clients or access keys:
// the file that is new, or has changed, is then in error. If both are new, as
// at the start, both are.
//
//	tenant.go    Dir: looking for changes
//	list.go      which files there are
//	conflict.go  tenants that cannot both be served
package tenant

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// againAfter is after how many calls of Next a file with an error is read
// again although it has not changed: a secret that it refers to may be there
// now.
const againAfter = 10

// ParseFunc parses the content of a tenant's file; see config.ParseTenant.
type ParseFunc func(path string, data []byte) (*config.Tenant, error)

// Dir is a directory of tenants' files. It is not safe for concurrent use.
type Dir struct {
	path  string
	parse ParseFunc

	files    map[string]*file // by name of the tenant
	identity livefile.Fingerprint
	accepted *State
}

// file is what is known of a file.
type file struct {
	prints []livefile.Fingerprint // of the file and its secrets
	hash   [sha256.Size]byte
	tenant *config.Tenant // nil if the file has an error
	err    error
	age    int // number of calls of Next since the file was read
}

// State is which tenants are served. It is immutable.
type State struct {
	// Tenants are the tenants that are served, by name.
	Tenants map[string]*config.Tenant
	// Problems are the files with errors, sorted by path.
	Problems []Problem
	// Err is why the directory could not be read; nil if it could. Tenants
	// are then those of before.
	Err error

	identity livefile.Fingerprint
}

// Problem is a file that is not used.
type Problem struct {
	Path string
	// Tenant is the name of the tenant; "" if the file cannot be that of a
	// tenant.
	Tenant string
	// Served is set if an earlier version of the file is still in use.
	Served bool
	Err    error
}

// Open returns the Dir at a path, without tenants: call Next and Accept.
func Open(path string, parse ParseFunc) *Dir {
	return &Dir{path: path, parse: parse, files: make(map[string]*file), accepted: &State{}}
}

// Current returns the State that was accepted last.
func (d *Dir) Current() *State { return d.accepted }

// Accept makes a State from Next the current one.
func (d *Dir) Accept(s *State) {
	d.accepted = s
	if s.Err == nil {
		d.identity = s.identity
	}
}

// Retry makes Next parse all files again that are not served, because the
// result of parsing can be another one.
func (d *Dir) Retry() {
	for name, f := range d.files {
		if f.tenant == nil || f.tenant != d.accepted.Tenants[name] {
			delete(d.files, name)
		}
	}
}

// Next looks for changes, and returns the State that follows from the current
// one. It only reads files that have changed, and only parses those with
// another content.
func (d *Dir) Next() *State {
	var err error
	for range 3 { // a volume may be replaced while it is read
		var found listing
		if found, err = d.list(); err != nil {
			continue
		}
		next, files := d.follow(found)
		if found.isOver(d.path) {
			err = errReplaced
			continue
		}
		if len(found.tenants) == 0 && len(d.accepted.Tenants) > 0 && !found.mounted &&
			!found.identity.SameFile(d.identity) {
			err = errEmpty
			break
		}

		d.files = files
		d.settle(next)
		slices.SortFunc(next.Problems, func(a, b Problem) int { return cmp.Compare(a.Path, b.Path) })
		return next
	}

	return &State{
		Tenants: d.accepted.Tenants, Problems: d.accepted.Problems,
		Err: fmt.Errorf("tenants_dir: %w; the tenants stay as they were", err),
	}
}

// follow returns the State that follows from the listed files, before
// conflicts, and what is known of these files.
func (d *Dir) follow(found listing) (*State, map[string]*file) {
	next := &State{Tenants: make(map[string]*config.Tenant), Problems: found.problems, identity: found.identity}
	files := make(map[string]*file, len(found.tenants))
	for _, name := range found.tenants {
		f := d.look(name, filepath.Join(found.root, name+config.TenantSuffix))
		if f == nil {
			continue // removed meanwhile
		}

		files[name] = f
		before := d.accepted.Tenants[name]
		switch {
		case f.err != nil:
			next.problem(d.pathOf(name), name, before != nil, f.err)
			if before != nil {
				next.Tenants[name] = before
			}
		case reflect.DeepEqual(before, f.tenant): // nothing but a comment has changed
			f.tenant = before
			next.Tenants[name] = before
		default:
			next.Tenants[name] = f.tenant
		}
	}

	return next, files
}

// errEmpty is the error for an empty directory in the place of one with
// tenants.
var errEmpty = errors.New("the directory is empty, and not the one that had the tenants: perhaps it is not mounted; " +
	"to remove all tenants, remove their files")

var errReplaced = errors.New("the directory is replaced again and again")

// pathOf is how a file is called in messages. It does not change with the
// versions of a mounted volume.
func (d *Dir) pathOf(name string) string { return filepath.Join(d.path, name+config.TenantSuffix) }

func (s *State) problem(path, tenant string, served bool, err error) {
	s.Problems = append(s.Problems, Problem{path, tenant, served, err})
}

// look returns what is known of a file, and reads it if it has changed. It
// returns nil if the file does not exist.
func (d *Dir) look(name, path string) *file {
	known := d.files[name]
	if known == nil {
		known = &file{}
	}
	prints := printsOf(path, known.tenant)
	known.age++
	if same(prints, known.prints) && (known.err == nil || known.age < againAfter) {
		return known
	}

	data, err := config.ReadTenantText(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &file{prints: prints, err: err}
	}

	hash := sha256.Sum256(data)
	if known.tenant != nil && hash == known.hash && same(prints[1:], known.prints[1:]) {
		known.prints = prints
		return known
	}
	return d.read(name, path, data)
}

// read parses a file whose content has changed.
func (d *Dir) read(name, path string, data []byte) *file {
	next := &file{hash: sha256.Sum256(data)}
	next.tenant, next.err = d.parse(d.pathOf(name), bytes.Clone(data))
	next.prints = printsOf(path, next.tenant)
	return next
}

func same(a, b []livefile.Fingerprint) bool {
	return slices.EqualFunc(a, b, livefile.Fingerprint.Equal)
}

// printsOf returns the fingerprints of a file and of the secrets that it refers
// to.
func printsOf(path string, t *config.Tenant) []livefile.Fingerprint {
	prints := []livefile.Fingerprint{livefile.Take(path)}
	if t != nil {
		for _, secret := range t.Secrets {
			prints = append(prints, livefile.Take(secret))
		}
	}
	return prints
}

// Removed returns the State s without the tenants that next no longer has, but
// with nothing that next adds or changes.
func (s *State) Removed(next *State) *State {
	left := maps.Clone(s.Tenants)
	maps.DeleteFunc(left, func(name string, _ *config.Tenant) bool { return next.Tenants[name] == nil })
	return &State{Tenants: left, Problems: next.Problems, Err: next.Err, identity: next.identity}
}

// Names returns the names of the tenants, sorted.
func (s *State) Names() []string { return slices.Sorted(maps.Keys(s.Tenants)) }

package tenant

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/livefile"
)

// dataLink is the link in a Kubernetes volume that points to the directory with
// the current version of all its files. It is replaced as a whole.
const dataLink = "..data"

// listing is which files there are.
type listing struct {
	root     string   // the directory with the files
	tenants  []string // names of tenants
	problems []Problem
	mounted  bool   // the directory is a Kubernetes volume
	target   string // of its ..data
	identity livefile.Fingerprint
}

// list lists the directory. In a Kubernetes volume, it lists the directory to
// which ..data points, so that all files are of one version.
func (d *Dir) list() (found listing, err error) {
	found.root = d.path
	if target, err := os.Readlink(filepath.Join(d.path, dataLink)); err == nil {
		found.mounted, found.target = true, target
		if !filepath.IsAbs(target) {
			target = filepath.Join(d.path, target)
		}
		found.root = target
	}

	found.identity = livefile.Take(d.path)
	entries, err := os.ReadDir(found.root)
	if err != nil {
		return found, err
	}

	for _, entry := range entries {
		file := entry.Name()
		if strings.HasPrefix(file, ".") {
			continue
		}
		name, err := config.TenantOf(file)
		if err != nil {
			found.problems = append(found.problems, Problem{Path: filepath.Join(d.path, file), Err: err})
			continue
		}
		found.tenants = append(found.tenants, name)
	}
	slices.Sort(found.tenants)
	return found, nil
}

// isOver reports whether another version of a Kubernetes volume has replaced
// the listed one, whose files may be gone.
func (l *listing) isOver(path string) bool {
	target, err := os.Readlink(filepath.Join(path, dataLink))
	return l.mounted && (err != nil || target != l.target)
}

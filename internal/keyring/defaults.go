package keyring

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/atomicfile"
)

// Defaults are what clients have chosen for buckets with PutBucketEncryption:
// the key, and that customer keys (SSE-C) are blocked. They are in a file that
// all replicas share. Each
// replica checks for changes of the file before it uses the defaults, at
// most once a second.
//
// If the file cannot be read, no object can be written. It never counts as
// an empty file.
type Defaults struct {
	path string
	now  func() time.Time

	mu      sync.Mutex
	checked time.Time
	changed time.Time // modification time when the file was read
	size    int64
	have    defaultsFile
	err     error
}

// defaultsFile is the content of the file, as JSON.
type defaultsFile struct {
	Version int               `json:"version"`
	Buckets map[string]string `json:"buckets"` // key names by bucket
	// Blocked are the buckets in which new objects must not be under customer
	// keys. Version 1 does not have them.
	Blocked []string `json:"customer_keys_blocked,omitempty"`
}

// A file without blocked buckets has version 1, so that earlier releases can
// read it. They refuse version 2 instead of ignoring what is blocked.
const (
	keysVersion    = 1
	blockedVersion = 2
	checkInterval  = time.Second
)

// Blocking is a change of whether a bucket's customer keys are blocked.
type Blocking int

// The changes.
const (
	KeepBlocking Blocking = iota
	Block
	Unblock
)

// ErrDefaults is returned if the file of the buckets' default keys cannot
// be read or written.
var ErrDefaults = errors.New("keyring: the file of the buckets' default keys")

// OpenDefaults returns the defaults in the file at path. The file need not
// exist yet, but its directory must.
func OpenDefaults(path string, now func() time.Time) (*Defaults, error) {
	d := &Defaults{path: path, now: now}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDefaults, err)
	}
	_, err := d.Key("")
	return d, err
}

// Key returns the name of the key chosen for a bucket, or "" if there is
// none. A nil *Defaults has none.
func (d *Defaults) Key(bucket string) (string, error) {
	have, err := d.current()
	return have.Buckets[bucket], err
}

// Blocks reports whether customer keys are blocked for new objects in a
// bucket.
func (d *Defaults) Blocks(bucket string) (bool, error) {
	have, err := d.current()
	return slices.Contains(have.Blocked, bucket), err
}

// current returns what the file has. It must not be changed.
func (d *Defaults) current() (defaultsFile, error) {
	if d == nil {
		return defaultsFile{}, nil
	}

	d.mu.Lock()
	defer d.mu.Unlock()

	if now := d.now(); d.checked.IsZero() || now.Sub(d.checked) >= checkInterval || now.Before(d.checked) {
		d.checked = now
		d.readIfChanged()
	}

	return d.have, d.err
}

// readIfChanged reads the file if its size or modification time has
// changed.
func (d *Defaults) readIfChanged() {
	info, err := os.Stat(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.have, d.err, d.changed, d.size = defaultsFile{}, nil, time.Time{}, 0
		return
	case err == nil && d.err == nil && info.ModTime().Equal(d.changed) && info.Size() == d.size:
		return
	case err == nil:
		d.changed, d.size = info.ModTime(), info.Size()
		d.have, err = d.read()
	}

	d.err = nil
	if err != nil {
		d.err = fmt.Errorf("%w: %w", ErrDefaults, err)
	}
}

func (d *Defaults) read() (file defaultsFile, err error) {
	data, err := os.ReadFile(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return file, nil
	}
	if err != nil {
		return file, err
	}

	if err := json.Unmarshal(data, &file); err != nil {
		return defaultsFile{}, fmt.Errorf("%s: %w", d.path, err)
	}
	if file.Version != keysVersion && file.Version != blockedVersion {
		return defaultsFile{}, fmt.Errorf(
			"%s: version %d, not %d or %d", d.path, file.Version, keysVersion, blockedVersion,
		)
	}

	return file, nil
}

// Set chooses the key with that name for a bucket; "" removes the choice. A
// file lock serializes calls of all replicas.
func (d *Defaults) Set(bucket, name string, block Blocking) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.writeFile(bucket, name, block); err != nil {
		return fmt.Errorf("%w: %w", ErrDefaults, err)
	}
	d.checked = time.Time{} // read the file at the next use
	return nil
}

func (d *Defaults) writeFile(bucket, name string, block Blocking) error {
	lock, err := os.OpenFile(d.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()

	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}

	file, err := d.read()
	if err != nil {
		return err
	}

	if file.Buckets == nil {
		file.Buckets = make(map[string]string)
	}
	if file.Buckets[bucket] = name; name == "" {
		delete(file.Buckets, bucket)
	}

	if block != KeepBlocking {
		file.Blocked = slices.DeleteFunc(file.Blocked, func(other string) bool { return other == bucket })
	}
	if block == Block {
		file.Blocked = append(file.Blocked, bucket)
		slices.Sort(file.Blocked)
	}
	file.Version = keysVersion
	if len(file.Blocked) > 0 {
		file.Version = blockedVersion
	}

	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}

	return atomicfile.Replace(d.path, append(data, '\n'), nil)
}

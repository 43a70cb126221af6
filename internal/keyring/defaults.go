package keyring

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/atomicfile"
)

// Defaults are the keys that clients have chosen for buckets with
// PutBucketEncryption. They are in a file that all replicas share. Each
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
	keys    map[string]string // key names by bucket
	err     error
}

// defaultsFile is the content of the file, as JSON.
type defaultsFile struct {
	Version int               `json:"version"`
	Buckets map[string]string `json:"buckets"`
}

const (
	defaultsVersion = 1
	checkInterval   = time.Second
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
	if d == nil {
		return "", nil
	}

	d.mu.Lock()
	defer d.mu.Unlock()

	if now := d.now(); d.checked.IsZero() || now.Sub(d.checked) >= checkInterval || now.Before(d.checked) {
		d.checked = now
		d.readIfChanged()
	}

	return d.keys[bucket], d.err
}

// readIfChanged reads the file if its size or modification time has
// changed.
func (d *Defaults) readIfChanged() {
	info, err := os.Stat(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.keys, d.err, d.changed, d.size = nil, nil, time.Time{}, 0
		return
	case err == nil && d.err == nil && info.ModTime().Equal(d.changed) && info.Size() == d.size:
		return
	case err == nil:
		d.changed, d.size = info.ModTime(), info.Size()
		d.keys, err = d.read()
	}

	d.err = nil
	if err != nil {
		d.err = fmt.Errorf("%w: %w", ErrDefaults, err)
	}
}

func (d *Defaults) read() (map[string]string, error) {
	data, err := os.ReadFile(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}

	var file defaultsFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", d.path, err)
	}
	if file.Version != defaultsVersion {
		return nil, fmt.Errorf("%s: version %d, not %d", d.path, file.Version, defaultsVersion)
	}

	return file.Buckets, nil
}

// Set chooses the key with that name for a bucket; "" removes the choice. A
// file lock serializes calls of all replicas.
func (d *Defaults) Set(bucket, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.writeFile(bucket, name); err != nil {
		return fmt.Errorf("%w: %w", ErrDefaults, err)
	}
	d.checked = time.Time{} // read the file at the next use
	return nil
}

func (d *Defaults) writeFile(bucket, name string) error {
	lock, err := os.OpenFile(d.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()

	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}

	keys, err := d.read()
	if err != nil {
		return err
	}

	keys = maps.Clone(keys)
	if keys == nil {
		keys = make(map[string]string)
	}
	if keys[bucket] = name; name == "" {
		delete(keys, bucket)
	}

	data, err := json.MarshalIndent(defaultsFile{Version: defaultsVersion, Buckets: keys}, "", "  ")
	if err != nil {
		return err
	}

	return atomicfile.Replace(d.path, append(data, '\n'), nil)
}

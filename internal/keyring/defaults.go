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

// Defaults are the keys that clients have chosen for buckets while the proxy
// runs (PutBucketEncryption). They are in a file, which all replicas share:
// each looks whether it has changed before it uses it, once in a second at
// most.
//
// A file that cannot be read is an error for all that is to be written, and
// never taken for one without defaults.
type Defaults struct {
	path string
	now  func() time.Time

	mu      sync.Mutex
	checked time.Time
	changed time.Time // of the file, when it was read
	size    int64
	keys    map[string]string // names, by bucket
	err     error
}

// defaultsFile is the form of the file.
type defaultsFile struct {
	Version int               `json:"version"`
	Buckets map[string]string `json:"buckets"`
}

const (
	defaultsVersion = 1
	checkInterval   = time.Second
)

// ErrDefaults says that the file of the buckets' keys cannot be read or
// written.
var ErrDefaults = errors.New("keyring: the file of the buckets' default keys")

// OpenDefaults returns the defaults in a file, which need not exist yet; its
// directory must.
func OpenDefaults(path string, now func() time.Time) (*Defaults, error) {
	d := &Defaults{path: path, now: now}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDefaults, err)
	}
	_, err := d.Key("")
	return d, err
}

// Key returns the name of the key that was chosen for a bucket, "" if none
// was. A nil Defaults has none.
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

// readIfChanged reads the file if it is another one than before.
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

// Set chooses the key for a bucket by its name; "" takes the choice back.
// Replicas that set at the same time wait for each other.
func (d *Defaults) Set(bucket, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.writeFile(bucket, name); err != nil {
		return fmt.Errorf("%w: %w", ErrDefaults, err)
	}
	d.checked = time.Time{} // look at once
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

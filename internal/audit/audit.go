// Package audit keeps the log of the uses of keys: one JSON line for each,
// whole, and written before Write returns.
//
// The log is there to be relied on: who cannot write a line is told so, and
// must not use the key. What a failed write leaves of a line, or a process
// that ended in the middle of one, stands on a line of its own and spoils no
// other: each line that is JSON is a record, and is whole.
package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Record is one line. Fields that are empty are left out.
type Record struct {
	Time   time.Time `json:"time"` // of the writing, in UTC; set by Write
	Event  string    `json:"event"`
	Result string    `json:"result"` // ok, or why not

	KMSKeyName    string `json:"kms_key_name,omitempty"`    // in the configuration
	KMSKey        string `json:"kms_key,omitempty"`         // its id, as in envelopes
	KMSKeyVersion string `json:"kms_key_version,omitempty"` // where the wrapped data key names it
	Source        string `json:"source,omitempty"`          // where the data key came from: cache, kms, joined
	KMSRequestID  string `json:"kms_request_id,omitempty"`  // by which the KMS's own log knows the request

	Client    string `json:"client,omitempty"`
	Session   string `json:"session,omitempty"` // access key, where it is one of temporary credentials
	Remote    string `json:"remote,omitempty"`  // address
	RequestID string `json:"request_id,omitempty"`
	Operation string `json:"operation,omitempty"` // of S3, or what else caused the event
	Bucket    string `json:"bucket,omitempty"`
	Key       string `json:"key,omitempty"` // of the object

	Purged *int   `json:"purged,omitempty"` // data keys that were forgotten
	Detail string `json:"detail,omitempty"`
}

// OK is the Result of what was done.
const OK = "ok"

// Config configures a Log. File or Out is required, and not both.
type Config struct {
	// File is the path of the log. It is made if it is not there, of mode
	// 0600, and appended to if it is.
	File string
	// Out is where lines go in place of a file.
	Out io.Writer
	// MaxSize is the size in bytes beyond which a file is renamed, and another
	// one begun. 0: no bound.
	MaxSize int64
	// MaxAge is how long a renamed file is kept. 0: for ever. It is looked at
	// when a file is begun.
	MaxAge time.Duration
	// MaxFiles is how many renamed files are kept, the newest. 0: all.
	MaxFiles int
	// Now is the clock. Required.
	Now func() time.Time
	// Trouble is told of what went wrong and kept no record from being
	// written: a file that could not be renamed or removed. It must not call
	// the Log. Nil: nobody is.
	Trouble func(error)
}

// Log is safe for concurrent use.
type Log struct {
	cfg Config

	mu          sync.Mutex
	closed      bool
	out         io.Writer // nil while there is no file
	partialLine bool      // what is in out may end within a line
	line        bytes.Buffer
	encoder     *json.Encoder // to line
	record      Record        // that is being written, here so that it is not allocated

	file    *os.File
	info    os.FileInfo // of file, as it was opened
	size    int64       // of file
	checked time.Time   // when the path was last compared with file
}

// ErrClosed says that a Log was closed.
var ErrClosed = errors.New("audit: the log is closed")

// New returns a Log. It opens the file.
func New(cfg Config) (*Log, error) {
	if (cfg.File == "") == (cfg.Out == nil) || cfg.Now == nil {
		return nil, errors.New("audit: a log has either a file or an output, and a clock")
	}
	if cfg.Trouble == nil {
		cfg.Trouble = func(error) {}
	}

	l := &Log{cfg: cfg, out: cfg.Out}
	l.encoder = json.NewEncoder(&l.line)
	l.encoder.SetEscapeHTML(false)

	if cfg.File == "" {
		return l, nil
	}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}

	l.prune()
	return l, nil
}

// Write writes one record as one line, in one write of the system. An error
// means that the record is not in the log, and that what it tells of must not
// happen.
func (l *Log) Write(r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.appendRecord(r); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

func (l *Log) appendRecord(r Record) error {
	if l.closed {
		return ErrClosed
	}

	now := l.cfg.Now()
	r.Time = now.UTC()
	l.record = r
	l.line.Reset()
	l.line.WriteByte('\n') // ends a partial line, and is not written otherwise

	if err := l.encoder.Encode(&l.record); err != nil {
		return err
	}
	if err := l.prepare(now, l.line.Len()); err != nil {
		return err
	}

	line := l.line.Bytes()
	if !l.partialLine {
		line = line[1:]
	}

	n, err := l.out.Write(line)
	l.size += int64(n)

	if err == nil && n < len(line) {
		err = io.ErrShortWrite
	}
	l.partialLine = err != nil && (l.partialLine || n > 0)
	return err
}

// Reopen lets go of the file and opens the one that is at its path now. It is
// for after a rotation by somebody else. On an error nothing is written until
// the file can be opened.
func (l *Log) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.cfg.File == "" {
		return nil
	}
	if err := l.open(); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// Close has all further writes fail.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.closeFile()
}

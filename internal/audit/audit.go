// Package audit writes the audit log: one JSON line for each use of a key,
// written before Write returns.
//
// The log is reliable. If a line cannot be written, the caller gets an
// error and must not use the key. A partial line, left by a failed write or
// by a crash, never damages another line: every line that is valid JSON is
// a complete record.
//
//	audit.go  Record and Log
//	file.go   opening, rotating and removing files
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

// Record is a line of the log. Empty fields are omitted.
type Record struct {
	Time   time.Time `json:"time"` // when it is written, in UTC; set by Write
	Event  string    `json:"event"`
	Result string    `json:"result"` // ok, or the reason of the refusal

	KMSKeyName    string `json:"kms_key_name,omitempty"`    // in the configuration
	KMSKey        string `json:"kms_key,omitempty"`         // id, as in envelopes
	KMSKeyVersion string `json:"kms_key_version,omitempty"` // if the wrapped data key shows it
	Source        string `json:"source,omitempty"`          // source of the data key: cache, kms, joined, customer
	KMSRequestID  string `json:"kms_request_id,omitempty"`  // the KMS's id of the request, also in the KMS's own log

	Tenant    string `json:"tenant,omitempty"` // that has the object
	Client    string `json:"client,omitempty"`
	Session   string `json:"session,omitempty"` // access key of temporary credentials
	Remote    string `json:"remote,omitempty"`  // address of the client
	RequestID string `json:"request_id,omitempty"`
	TraceID   string `json:"trace_id,omitempty"`  // in hexadecimal
	Operation string `json:"operation,omitempty"` // S3 operation, or what else caused the event
	Bucket    string `json:"bucket,omitempty"`
	Key       string `json:"key,omitempty"` // object key

	Purged *int   `json:"purged,omitempty"` // number of data keys purged
	Detail string `json:"detail,omitempty"`
}

// OK is the Result of an allowed use.
const OK = "ok"

// Config configures a Log. Set either File or Out.
type Config struct {
	// File is the path of the log. It is created with mode 0600 if it does
	// not exist; otherwise records are appended.
	File string
	// Out is written to instead of a file.
	Out io.Writer
	// MaxSize is the size in bytes at which the file is renamed and a new
	// one started. 0 means no limit.
	MaxSize int64
	// MaxAge is how long renamed files are kept, checked whenever a new
	// file is started. 0 means forever.
	MaxAge time.Duration
	// MaxFiles is how many renamed files are kept. 0 means all.
	MaxFiles int
	// Now is the clock. Required.
	Now func() time.Time
	// Trouble is called for errors that do not affect records: a file could
	// not be renamed or removed. It must not call the Log. It may be nil.
	Trouble func(error)
}

// Log is an audit log. It is safe for concurrent use.
type Log struct {
	cfg Config

	mu          sync.Mutex
	closed      bool
	out         io.Writer // nil if no file is open
	partialLine bool      // out may end with a partial line
	line        bytes.Buffer
	encoder     *json.Encoder // writes to line
	record      Record        // the record being written; kept here to avoid allocations

	file    *os.File
	info    os.FileInfo // of file, when it was opened
	size    int64       // of file
	checked time.Time   // when the path was last compared with file
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("audit: the log is closed")

// New returns a Log and opens the file.
func New(cfg Config) (*Log, error) {
	if (cfg.File == "") == (cfg.Out == nil) || cfg.Now == nil {
		return nil, errors.New("audit: a log needs either a file or an output, and a clock")
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

// Write writes a record as one line, with one system call. If it returns an
// error, the record is not in the log, and the use that it describes must
// be refused.
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
	l.line.WriteByte('\n') // ends a partial line; otherwise not written

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

// Reopen closes the file and opens the file that is now at its path, for
// use after an external log rotation. If opening fails, writes fail until
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

// Close closes the log. Later writes fail.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.closeFile()
}

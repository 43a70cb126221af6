package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// client has the operations that every client supports. Errors of the S3
// protocol are *apiError.
type client interface {
	createBucket(bucket string) error
	put(bucket, key string, data []byte) error
	get(bucket, key string) ([]byte, error)
	// list returns the keys and sizes of all objects with a prefix, at any
	// depth.
	list(bucket, prefix string) (map[string]int64, error)
	remove(bucket, key string) error
	// as returns the same client with other credentials.
	as(credentials) client
}

// Optional operations. A check that needs one is skipped for clients that do
// not have it.
type (
	header interface {
		head(bucket, key string) (attributes, error)
	}
	ranger interface {
		// getRange takes a range as in the Range header, without "bytes=".
		getRange(bucket, key, spec string) ([]byte, error)
	}
	pager interface {
		// page lists in pages of pageSize keys until the end. It returns the
		// keys with their sizes, and the common prefixes.
		page(bucket, prefix, delimiter string, pageSize int) (map[string]int64, []string, error)
	}
	syncer interface {
		// sync copies new and changed files from a directory to
		// bucket/prefix, and syncBack copies them back. Both return the
		// number of files copied.
		sync(dir, bucket, prefix string) (copied int, err error)
		syncBack(bucket, prefix, dir string) (copied int, err error)
	}
	presigner interface {
		presign(method, bucket, key string, valid time.Duration) (string, error)
	}
	metadataPutter interface {
		putWith(bucket, key string, data []byte, a attributes) error
	}
	conditioner interface {
		getIf(bucket, key string, c condition) ([]byte, error)
		putIf(bucket, key string, data []byte, c condition) error
	}
	checksummer interface {
		// putMD5 sends a Content-MD5, in base64.
		putMD5(bucket, key string, data []byte, md5 string) error
		// putChecksum makes the client compute a checksum, such as SHA256.
		// If value is not empty, it sends value, in base64.
		putChecksum(bucket, key string, data []byte, algorithm, value string) error
		// getVerified reads with checksum validation. It returns the
		// checksums from the server, in base64, by algorithm.
		getVerified(bucket, key string) ([]byte, map[string]string, error)
		algorithms() []string
	}
	manyRemover interface {
		removeMany(bucket string, keys []string) error
	}
	bucketRemover interface {
		removeBucket(bucket string) error
	}
	multiparter interface {
		// putLarge and getLarge copy a file that is too large for one
		// request, with the client's default settings.
		putLarge(bucket, key, file string) error
		getLarge(bucket, key, file string) error
	}
	copier interface {
		// copy makes the server copy an object. move also deletes the
		// source.
		copy(bucket, from, to string) error
		move(bucket, from, to string) error
	}
	tagger interface {
		setTags(bucket, key string, tags map[string]string) error
		tags(bucket, key string) (map[string]string, error)
	}
)

// errNoPresign is returned for a method that the client cannot presign.
var errNoPresign = errors.New("the client does not presign this method")

// errUnknownOption is returned if this version of the client does not
// support an option.
var errUnknownOption = errors.New("unknown option")

// condition holds the conditions of a request. Empty fields are not sent.
type condition struct{ ifMatch, ifNoneMatch string }

// attributes are the properties of an object besides its content.
type attributes struct {
	size                                                                     int64
	etag                                                                     string
	contentType, cacheControl, disposition, contentEncoding, contentLanguage string
	metadata                                                                 map[string]string // names in lower case
}

// apiError is an error of the S3 protocol. Code is "" if the client does not
// report it.
type apiError struct {
	code   string
	status int // 0 if the client does not report it
	text   string
}

func (e *apiError) Error() string {
	return fmt.Sprintf("%s (%d): %s", e.code, e.status, e.text)
}

// refusedAs reports whether err is an API error with a status and one of
// codes. A status or code that the client does not report is not checked.
// The response to a HEAD has no body, so it has no code.
func refusedAs(err error, status int, codes ...string) bool {
	var e *apiError
	if !errors.As(err, &e) {
		return false
	}
	if e.status != 0 && e.status != status {
		return false
	}
	return slices.Contains(codes, e.code) || e.status == status && (e.code == "" || e.code == http.StatusText(status) || e.code == fmt.Sprint(status) ||
		e.code == strings.ReplaceAll(http.StatusText(status), " ", "") || e.code == fmt.Sprint(status, " ", http.StatusText(status)))
}

// code returns the code of an API error, for messages.
func code(err error) string {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e.code
	}
	return ""
}

// These patterns match the ways in which command-line clients print an S3
// error.
var (
	errorCode   = regexp.MustCompile(`(?:An error occurred \(|S3 error: \d{3} \(|error [A-Za-z ]*: |failed to [a-z ]+: )([A-Z][A-Za-z0-9.]+|\d{3})(?:\)|:)`)
	errorStatus = regexp.MustCompile(`(?:S3 error: |[Ss]tatus code: |An error occurred \()(\d{3})\b`)
)

// toolError converts the output of a command-line client to an *apiError, if
// it looks like one.
func toolError(err error) error {
	if err == nil {
		return nil
	}
	e := &apiError{text: err.Error()}
	if strings.Contains(e.text, "Unknown options") {
		return errUnknownOption
	}

	if m := errorStatus.FindStringSubmatch(e.text); m != nil {
		_, _ = fmt.Sscan(m[1], &e.status)
	}
	if m := errorCode.FindStringSubmatch(e.text); m != nil {
		e.code = m[1]
	}

	if e.code == "" && e.status == 0 {
		return err
	}
	return e
}

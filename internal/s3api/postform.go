package s3api

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/textproto"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// form is the body of a form upload (RFC 7578): its fields, the file, and
// whatever follows the file, which S3 ignores.
//
// The envelope is sent before the object and has its size, but a form does
// not state the size of its file. It depends on the length of the body:
//
//   - Up to maxBuffered bytes are read into memory before anything is sent.
//   - The file of a longer body is sent in two parts. The first ends
//     maxTail bytes before the end of the body. The last bytes are read into
//     memory, where the file's end must be.
//   - If all buffers are in use, a body that should be buffered is expected
//     to end right after the file, with the closing boundary and a line
//     break. This is verified while the file is read; otherwise nothing is
//     stored.
type form struct {
	fields   map[string]string // those before the file; names in lower case
	filename string
	post     *sigv4.Post // the verified signature
	size     int64       // of the file, in bytes; negative while it is not known
	ahead    int64       // bytes of a long file in its first part; 0 for others
	file     io.Reader

	src      *bufio.Reader
	boundary string       // with the two leading dashes
	left     int64        // bytes of the body that are not read yet
	budget   int          // bytes that may still come before the file
	head     *formFile    // the first part of a long file
	tail     bytes.Reader // the second
	release  func()       // returns the buffer; nil for none
}

const (
	// maxTail limits what may follow a long file, in bytes.
	maxTail = maxPeek
	// maxBuffered is the longest rest of a form that is buffered, in bytes.
	// What is longer has at least 5 MiB for the first part, S3's minimum.
	maxBuffered = crypt.MinPartSize + maxTail
	// formBufferCount is the number of buffers for more than maxPeek bytes.
	// Together they take up to 96 MiB.
	formBufferCount = 16
)

// maxFields is S3's limit for a form without its file, in bytes.
const maxFields = 20 << 10

var errMalformedForm = badRequest(
	"MalformedPOSTRequest",
	"The body of your POST request is not well-formed multipart/form-data.",
)

// readForm reads everything before the file; openFile begins to read the
// file. length is the length of the body.
func readForm(body io.Reader, contentType string, length int64) (*form, error) {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil || params["boundary"] == "" || len(params["boundary"]) > 70 {
		return nil, errMalformedForm
	}

	f := &form{
		fields: make(map[string]string), src: bufio.NewReaderSize(body, maxFields),
		boundary: "--" + params["boundary"], left: length, budget: maxFields, size: -1,
	}

	line, err := f.line()
	if err != nil {
		return nil, err
	}
	if found, end := f.delimits(line); !found || end {
		return nil, errMalformedForm
	}

	for {
		name, err := f.part()
		if err != nil {
			return nil, err
		}
		if name == "file" {
			return f, nil
		}

		value, end, err := f.value()
		if err != nil {
			return nil, err
		}
		if _, twice := f.fields[name]; twice {
			return nil, invalidField(name, "The form field "+name+" occurs more than once.")
		}

		f.fields[name] = value
		if end {
			return nil, filesError(0)
		}
	}
}

func invalidField(name, message string) *Error {
	return &Error{Code: "InvalidArgument", Message: message, Details: [][2]string{{"ArgumentName", name}}}
}

func filesError(n int) *Error {
	return &Error{
		Code: "InvalidArgument", Message: "POST requires exactly one file upload per request.",
		Details: [][2]string{{"ArgumentName", "file"}, {"ArgumentValue", fmt.Sprint(n)}},
	}
}

// line reads a line, including its line break. The line is valid until the
// next call.
func (f *form) line() ([]byte, error) {
	line, err := f.src.ReadSlice('\n')
	f.left -= int64(len(line))
	if f.budget -= len(line); f.budget < 0 || errors.Is(err, bufio.ErrBufferFull) {
		return nil, badRequest(
			"MaxPostPreDataLengthExceeded",
			"Your POST request fields preceding the upload file were too large.",
		)
	}

	if err == io.EOF && len(line) > 0 { // unwrapped, as readers return it
		return line, nil
	}
	if err == io.EOF { // unwrapped, as readers return it
		return nil, errMalformedForm
	}
	return line, err
}

// delimits reports whether a line is a boundary, and whether it is the
// closing one.
func (f *form) delimits(line []byte) (found, end bool) {
	text := strings.TrimRight(string(line), " \t\r\n")
	return text == f.boundary || text == f.boundary+"--", text == f.boundary+"--"
}

// part reads the headers of a part, and returns the name of the field.
func (f *form) part() (name string, err error) {
	var header bytes.Buffer
	for {
		line, err := f.line()
		if err != nil {
			return "", err
		}
		header.Write(line)

		if string(line) == "\r\n" {
			break
		}
	}

	h, err := textproto.NewReader(bufio.NewReader(&header)).ReadMIMEHeader()
	if err != nil {
		return "", errMalformedForm
	}

	kind, params, err := mime.ParseMediaType(h.Get("Content-Disposition"))
	if err != nil || kind != "form-data" || params["name"] == "" ||
		h.Get("Content-Transfer-Encoding") != "" && !strings.EqualFold(h.Get("Content-Transfer-Encoding"), "binary") {
		return "", errMalformedForm
	}
	f.filename = params["filename"]
	return strings.ToLower(params["name"]), nil
}

// value reads the value of a field, and reports whether the form ends after
// it.
func (f *form) value() (value string, end bool, err error) {
	var text bytes.Buffer
	for {
		line, err := f.line()
		if err != nil {
			return "", false, err
		}
		if found, end := f.delimits(line); found && (text.Len() == 0 || bytes.HasSuffix(text.Bytes(), []byte("\r\n"))) {
			return strings.TrimSuffix(text.String(), "\r\n"), end, nil
		}
		text.Write(line)
	}
}

// limits returns the limits of the file's size, as far as it is known.
func (f *form) limits() (least, most int64) {
	if f.size >= 0 {
		return f.size, f.size
	}
	return f.ahead, max(f.ahead+f.left-int64(len("\r\n"+f.boundary+"--")), 0)
}

// isLong reports whether the file is stored in two parts.
func (f *form) isLong() bool { return f.ahead > 0 }

// openFile prepares to read the file, and finds out its size if it can.
// buffers limits the number of forms that are in memory.
func (f *form) openFile(buffers chan struct{}) error {
	switch {
	case f.left > maxBuffered:
		f.ahead = f.left - maxTail
		f.head = newFormFile(f, f.ahead, nil)
		f.file = io.MultiReader(f.head, &f.tail)
		return nil
	case f.left > maxPeek && !f.takeBuffer(buffers):
		end := []byte("\r\n" + f.boundary + "--\r\n")
		f.size = f.left - int64(len(end))
		f.file = newFormFile(f, f.size, end)
		return nil
	}

	text, err := f.readRest([]byte("\r\n"))
	f.size, f.file = int64(len(text)), bytes.NewReader(text)
	return err
}

// openTail reads the end of a long form, after the first part of its file.
func (f *form) openTail() error {
	f.left = maxTail
	text, err := f.readRest(f.head.before)
	f.size = f.ahead + int64(len(text))
	f.tail.Reset(text)
	return err
}

func (f *form) takeBuffer(buffers chan struct{}) bool {
	select {
	case buffers <- struct{}{}:
		f.release = func() { <-buffers }
		return true
	default:
		return false
	}
}

// readRest reads the rest of the body and returns the rest of the file in
// it. before has the last bytes that were read, in which the delimiter may
// begin.
func (f *form) readRest(before []byte) ([]byte, error) {
	start := len(before)
	rest := make([]byte, start+int(max(f.left, 0)))
	copy(rest, before)
	if _, err := io.ReadFull(f.src, rest[start:]); err != nil {
		return nil, bodyError(err)
	}
	f.left = 0

	i := bytes.Index(rest, []byte("\r\n"+f.boundary))
	switch {
	case i < 0:
		return nil, errMalformedForm
	case i < start && f.isLong():
		return nil, errBehindFile
	case i < start: // the file has not even a line
		return nil, errMalformedForm
	}
	return rest[start:i], f.ignore(rest[i+len("\r\n"):])
}

// ignore skips what follows the file, as S3 does.
func (f *form) ignore(rest []byte) error {
	behind := &form{
		src:      bufio.NewReaderSize(bytes.NewReader(rest), max(len(rest), 16)),
		boundary: f.boundary,
		budget:   len(rest),
	}

	line, err := behind.line()
	found, end := behind.delimits(line)
	if err != nil || !found {
		return errMalformedForm
	}

	for !end {
		name, err := behind.part()
		if err != nil {
			return errMalformedForm
		}
		if name == "file" {
			return filesError(2)
		}

		if _, end, err = behind.value(); err != nil {
			return errMalformedForm
		}
	}

	return nil
}

// formFile reads a file, or its first part, whose size is known or supposed.
type formFile struct {
	src       io.Reader
	left      int64 // bytes of the file that are not read yet
	delimiter []byte
	before    []byte // the last bytes that were read, in which a delimiter may begin

	// What must follow the file, with nothing after it; nil if it was read, or
	// if any bytes may follow. io.EOF is returned only if that is true.
	end []byte
}

func newFormFile(f *form, size int64, end []byte) *formFile {
	return &formFile{
		src: f.src, left: size, delimiter: []byte("\r\n" + f.boundary), before: []byte("\r\n"), end: end,
	}
}

func (f *formFile) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, f.atTheEnd()
	}
	n, err := f.src.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	if f.delimited(p[:n]) {
		return 0, f.misjudged()
	}
	if err == io.EOF { // unwrapped, as readers return it
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// misjudged returns the error for a file that ends earlier than expected.
func (f *formFile) misjudged() error {
	if f.end == nil {
		return errBehindFile
	}
	return errBusyForms
}

var (
	errBehindFile = notImplemented(
		"A form with more than 1 MiB of data after a large file",
		"make the file the last field",
	)
	errBusyForms = &Error{
		Code:       "SlowDown",
		Message:    "Too many forms with fields after the file are being uploaded. Please try again.",
		RetryAfter: retryAfter,
	}
)

// delimited reports whether the delimiter occurs in the bytes read so far,
// and keeps the last bytes for the next call.
func (f *formFile) delimited(p []byte) bool {
	overlap := append(f.before, p[:min(len(p), len(f.delimiter)-1)]...)
	if bytes.Contains(overlap, f.delimiter) || bytes.Contains(p, f.delimiter) {
		return true
	}
	if len(p) >= len(f.delimiter) {
		overlap = p
	}
	f.before = bytes.Clone(overlap[max(0, len(overlap)-len(f.delimiter)+1):])
	return false
}

func (f *formFile) atTheEnd() error {
	if f.end == nil {
		return io.EOF
	}
	rest := make([]byte, len(f.end))
	if _, err := io.ReadFull(f.src, rest); err != nil {
		return bodyError(err)
	}
	if !bytes.Equal(rest, f.end) {
		return errBusyForms
	}
	f.end = nil
	return io.EOF
}

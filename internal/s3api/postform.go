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
)

// form is the body of a form upload (RFC 7578): its fields, and after them
// the file.
//
// The envelope is sent before the object and has its size, but a form does
// not state the size of its file. The size follows from the length of the
// body, if the file is the last field and the form ends in the usual way:
// with the closing boundary and a line break. This is verified while the
// file is read; otherwise nothing is stored. A short file is buffered first,
// and any fields may follow it.
type form struct {
	fields   map[string]string // those before the file; names in lower case
	filename string
	size     int64 // of the file, in bytes
	file     io.Reader

	src      *bufio.Reader
	boundary string // with the two leading dashes
	left     int64  // bytes of the body that are not read yet
	budget   int    // bytes that may still come before the file
}

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
		boundary: "--" + params["boundary"], left: length, budget: maxFields,
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

// openFile finds out the size of the file, and prepares to read it.
func (f *form) openFile() error {
	delimiter := []byte("\r\n" + f.boundary)
	end := append(bytes.Clone(delimiter), "--\r\n"...)
	if f.left > maxPeek {
		f.size = f.left - int64(len(end))
		f.file = &formFile{src: f.src, left: f.size, delimiter: delimiter, end: end, before: []byte("\r\n")}
		return nil
	}

	rest := make([]byte, max(f.left, 0))
	if _, err := io.ReadFull(f.src, rest); err != nil {
		return bodyError(err)
	}
	f.left = 0

	i := bytes.Index(rest, delimiter)
	if i < 0 || bytes.HasPrefix(rest, []byte(f.boundary)) {
		return errMalformedForm
	}
	f.size, f.file = int64(i), bytes.NewReader(rest[:i])
	return f.ignore(rest[i+len("\r\n"):])
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

// formFile reads a file that is expected to be the last field of its form.
// It returns io.EOF only if that is true.
type formFile struct {
	src       io.Reader
	left      int64 // bytes of the file that are not read yet
	delimiter []byte
	end       []byte // what must follow the file, with nothing after it; nil once it was read
	before    []byte // the last bytes that were read, in which a delimiter may begin
}

func (f *formFile) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, f.atTheEnd()
	}
	n, err := f.src.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	if f.delimited(p[:n]) {
		return 0, errBehindFile
	}
	if err == io.EOF { // unwrapped, as readers return it
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

var errBehindFile = notImplemented(
	"A form with data after a file of over 1 MiB",
	"make the file the last field",
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
		return errBehindFile
	}
	f.end = nil
	return io.EOF
}

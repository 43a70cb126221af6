package s3api

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// answer describes what the store's answer to a successful operation must
// have. It is the name of the root element of an XML document, or one of the
// constants.
//
// A login page or a load balancer between the proxy and its store can answer
// 200 to any request. If an answer lacks what S3 always sends, the proxy
// does not treat it as a success.
type answer string

const (
	unsent   answer = ""         // the proxy never sends it to the store
	anything answer = "anything" // the proxy looks for itself
	nothing  answer = "nothing"  // an empty body; stores may send XML instead, except for DELETE
	written  answer = "written"  // an ETag and an empty body
	content  answer = "content"  // an ETag and a body of known length
	document answer = "xml"      // XML, whose root element stores do not agree on
	policies answer = "json"     // a JSON object
	allowed  answer = "allowed"  // an Access-Control-Allow-Origin header
)

// CheckAnswer returns an error unless resp, an answer with status 2xx, is
// what S3 sends after it has done what r asks for. S3 reports some failures
// with status 200; CheckAnswer returns the error that is in the document.
//
// r is a request to the store. Its URL has only the path /bucket/key and the
// query. CheckAnswer may read from the body, and replaces it with an equal
// one.
func CheckAnswer(r *http.Request, resp *http.Response) error {
	row := sentAs(r)
	if row == nil {
		return fmt.Errorf(
			"%w was sent a request that is not in the table of operations: %s %s",
			errOrigin,
			r.Method,
			r.URL,
		)
	}

	why, err := row.answer.mismatch(r, resp)
	if err != nil {
		return err
	}
	if why == "" {
		return nil
	}

	return &Error{
		Code:       "ServiceUnavailable",
		Message:    foreignMessage,
		RetryAfter: retryAfter,
		cause: fmt.Errorf("%w %w", errOrigin, &storefault.Error{
			Kind: storefault.Foreign, Temporary: true,
			What: fmt.Sprintf("answered %d to %s with %s (Content-Type %q)",
				resp.StatusCode, row.op, why, resp.Header.Get("Content-Type")),
			Hint: "something other than the store answered: check the host, port and path in origin.endpoint",
		}),
	}
}

// sentAs returns the operation of a request to the store, or nil.
func sentAs(r *http.Request) *route {
	named := service
	if name, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); key != "" {
		named = object
	} else if name != "" {
		named = bucket
	}
	for i := range routes {
		if row := &routes[i]; row.path == named && row.matches(r, nil) {
			return row
		}
	}
	return nil
}

// mismatch describes what is wrong with an answer; "" if it is right.
func (a answer) mismatch(r *http.Request, resp *http.Response) (why string, err error) {
	h := resp.Header
	switch {
	case a == allowed && h.Get("Access-Control-Allow-Origin") == "":
		return "no Access-Control-Allow-Origin", nil
	case (a == written || a == content) && h.Get("Etag") == "":
		return "no ETag", nil
	case a == content && resp.ContentLength < 0:
		return "a body of unknown length", nil
	case r.Method == http.MethodHead && resp.ContentLength > 0 && a == nothing &&
		strings.HasPrefix(h.Get("Content-Type"), "text/html"):
		return "a page", nil
	case a == allowed, a == content, a == anything, r.Method == http.MethodHead:
		return "", nil
	case a == nothing && r.Method != http.MethodDelete:
		return checkEmptyOrXML(resp)
	case a == written, a == nothing:
		return checkEmpty(resp)
	case a == policies:
		return checkJSON(resp)
	default:
		return a.checkRoot(resp)
	}
}

// maxProlog limits, in bytes, what is read of a document up to its root
// element. White space counts: stores send it to keep a client waiting.
const maxProlog = 64 << 10

func checkEmpty(resp *http.Response) (why string, err error) {
	var body bytes.Buffer
	if _, err := body.ReadFrom(io.LimitReader(resp.Body, maxProlog)); err != nil {
		return "", err
	}
	if text := bytes.TrimSpace(body.Bytes()); len(text) > 0 {
		return fmt.Sprintf("a body that should be empty: %.60q", text), nil
	}
	return "", nil
}

// checkEmptyOrXML accepts an empty body, which S3 sends, and an XML
// document, which other stores may send. SDKs ignore the document.
func checkEmptyOrXML(resp *http.Response) (why string, err error) {
	var seen bytes.Buffer
	if _, err := seen.ReadFrom(io.LimitReader(resp.Body, maxProlog)); err != nil {
		return "", err
	}
	empty := len(bytes.TrimSpace(seen.Bytes())) == 0
	putBack(resp, &seen)
	if empty {
		return "", nil
	}
	return document.checkRoot(resp)
}

func checkJSON(resp *http.Response) (why string, err error) {
	var seen bytes.Buffer
	defer putBack(resp, &seen)
	var one [1]byte

	for {
		_, err := io.ReadFull(resp.Body, one[:])
		if errors.Is(err, io.EOF) {
			return "no body", nil
		}
		if err != nil {
			return "", err
		}

		seen.Write(one[:])
		switch {
		case one[0] == '{':
			return "", nil
		case !strings.Contains(" \t\r\n", string(one[:])) || seen.Len() > maxProlog:
			return "a body that is not JSON", nil
		}
	}
}

func (a answer) checkRoot(resp *http.Response) (why string, err error) {
	root, err := rootOf(resp)
	switch {
	case err != nil:
		return "", err
	case root == "Error":
		var body bytes.Buffer
		if _, err := body.ReadFrom(io.LimitReader(resp.Body, maxErrorBody)); err != nil {
			return "", err
		}
		return "", lateError(body.Bytes())
	case root == "":
		return "a body that is not XML", nil
	case root != string(a) && (a != document || strings.EqualFold(root, "html")):
		return "a document <" + root + ">", nil
	default:
		return "", nil
	}
}

// rootOf returns the name of the body's root element, and puts back what it
// has read. It returns "" if the body is not XML.
func rootOf(resp *http.Response) (root string, err error) {
	var seen bytes.Buffer
	defer putBack(resp, &seen)
	source := &errorReader{src: io.LimitReader(resp.Body, maxProlog)}
	d := xml.NewDecoder(io.TeeReader(source, &seen))

	// Element names are ASCII in all charsets.
	d.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil }

	for {
		token, err := d.RawToken()
		if source.err != nil {
			return "", source.err
		}
		if err != nil {
			return "", nil // not XML
		}

		if start, ok := token.(xml.StartElement); ok {
			return start.Name.Local, nil
		}
	}
}

// putBack makes the body start with seen again.
func putBack(resp *http.Response, seen *bytes.Buffer) {
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(seen, resp.Body), resp.Body}
}

// errorReader remembers a read error, which a parser may replace by its own.
type errorReader struct {
	src io.Reader
	err error
}

func (f *errorReader) Read(p []byte) (int, error) {
	n, err := f.src.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

// lateError returns the error in an answer with status 200. S3 begins to
// answer CopyObject and CompleteMultipartUpload before it is done.
func lateError(body []byte) *Error {
	code, _, _ := element(body, "Code")
	message, _, _ := element(body, "Message")
	e := &Error{
		Code:    string(code),
		Message: html.UnescapeString(string(message)),
		cause:   fmt.Errorf("%w answered 200 with the error %.100q", errOrigin, code),
	}
	if _, ok := statuses[e.Code]; !ok {
		e.httpStatus = http.StatusInternalServerError
	}
	if e.Status() == http.StatusServiceUnavailable {
		e.RetryAfter = retryAfter
	}

	if !codeForm.MatchString(e.Code) {
		e.Code, e.Message = "InternalError", "The store has not completed the upload. Please try again."
	}
	return e
}

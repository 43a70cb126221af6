package s3api

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
)

// xmlBody reads the XML document of a request token by token. A document
// that is refused costs no more than the part that was read. Unmarshalling a
// whole hostile document would need hundreds of bytes of memory for each of
// its bytes.
type xmlBody struct {
	decoder *xml.Decoder
	entries int // elements that were entered
	tokens  int
}

// Limits that no SDK comes near.
const (
	maxXMLRun        = 16 << 10 // bytes between two "<": a tag with its attributes, or text
	maxXMLAttributes = 8        // of one element
	maxXMLTokens     = 64       // per element that is entered
)

var errXML = errors.New("the document is larger than a valid one can be")

// newXMLBody returns a reader that has entered the root element. The root
// element must have the given name.
func newXMLBody(body []byte, root string) (*xmlBody, error) {
	for rest := body; len(rest) > 0; {
		run := bytes.IndexByte(rest, '<')
		if run < 0 {
			run = len(rest) - 1
		}
		if run > maxXMLRun {
			return nil, errXML
		}

		rest = rest[run+1:]
	}

	x := &xmlBody{decoder: xml.NewDecoder(bytes.NewReader(body))}
	name, err := x.next()
	if err != nil {
		return nil, err
	}
	if name != root {
		return nil, errors.New("the root element is " + name)
	}

	x.entries++
	return x, nil
}

// enter enters the element that next has returned, so that next returns its
// children.
func (x *xmlBody) enter() { x.entries++ }

// next returns the name of the next child of the current element, or io.EOF
// at its end.
func (x *xmlBody) next() (string, error) {
	for {
		token, err := x.token()
		if errors.Is(err, io.EOF) {
			return "", io.ErrUnexpectedEOF // io.EOF means the end of an element
		}
		if err != nil {
			return "", err
		}

		switch t := token.(type) {
		case xml.StartElement:
			return t.Name.Local, nil
		case xml.EndElement:
			return "", io.EOF
		}
	}
}

// text returns the text of the element that next has returned. The element
// must not have children.
func (x *xmlBody) text() (string, error) {
	var text strings.Builder
	for {
		token, err := x.token()
		if err != nil {
			return "", err
		}

		switch t := token.(type) {
		case xml.CharData:
			text.Write(t)
		case xml.StartElement:
			return "", errors.New("an element " + t.Name.Local + " instead of text")
		case xml.EndElement:
			return text.String(), nil
		}
	}
}

func (x *xmlBody) token() (xml.Token, error) {
	if x.tokens++; x.tokens > (x.entries+1)*maxXMLTokens {
		return nil, errXML
	}
	token, err := x.decoder.Token()
	if start, ok := token.(xml.StartElement); ok && len(start.Attr) > maxXMLAttributes {
		return nil, errXML
	}
	return token, err
}

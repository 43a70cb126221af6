package s3api

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
)

// xmlBody reads the XML document of a request by one token after the other, so
// that a document that is refused costs no more than what was read of it until
// then. Package xml alone makes hundreds of bytes of each that a hostile one
// has.
type xmlBody struct {
	decoder *xml.Decoder
	entries int // elements that were entered
	tokens  int
}

// Bounds of what no SDK comes near to.
const (
	maxXMLRun        = 16 << 10 // bytes between two "<": of a tag with its attributes, or of text
	maxXMLAttributes = 8        // of one element
	maxXMLTokens     = 64       // per element that is entered
)

var errXML = errors.New("the document has more in it than such a document can have")

// newXMLBody returns a reader that has entered the root element, which must
// have that name.
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
		return nil, errors.New("the document is a " + name)
	}

	x.entries++
	return x, nil
}

// enter has the element that next has returned begin: next returns its
// children.
func (x *xmlBody) enter() { x.entries++ }

// next returns the name of the next child of the element that was entered last,
// or io.EOF at its end.
func (x *xmlBody) next() (string, error) {
	for {
		token, err := x.token()
		if errors.Is(err, io.EOF) {
			return "", io.ErrUnexpectedEOF // io.EOF is the end of an element
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

// text reads the element that next has returned, which has nothing but text.
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
			return "", errors.New("an element " + t.Name.Local + " where there must be text")
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

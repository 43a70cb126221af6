package sigv4

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// appendCanonicalRequest appends the canonical request, step 1 of
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html#canonical-request.
func appendCanonicalRequest(b []byte, r *http.Request, c *claim, rawPath string, query []parameter) ([]byte, error) {
	path, err := UnescapePath(rawPath)
	if err != nil {
		return nil, err
	}

	b = append(append(b, r.Method...), '\n')
	b = append(append(b, EscapePath(path)...), '\n')
	b = append(append(b, canonicalQuery(query)...), '\n')

	for _, name := range c.signed {
		b = append(append(b, name...), ':')
		b = append(appendValues(b, r, name), '\n')
	}

	b = append(b, '\n')
	for i, name := range c.signed {
		if i > 0 {
			b = append(b, ';')
		}
		b = append(b, name...)
	}

	return append(append(b, '\n'), c.hash...), nil
}

// appendValues appends the values of a header. Spaces around each value are
// removed, and repeated spaces within it become one. net/http keeps some
// headers outside r.Header.
func appendValues(b []byte, r *http.Request, name string) []byte {
	switch name {
	case "host":
		return append(b, collapse(r.Host)...)
	case "content-length":
		if len(r.Header.Values("Content-Length")) == 0 && r.ContentLength >= 0 {
			return strconv.AppendInt(b, r.ContentLength, 10)
		}
	case "transfer-encoding":
		return append(b, strings.Join(r.TransferEncoding, ",")...)
	case "expect": // net/http removes it for HTTP/2, where no other value is possible
		if r.ProtoMajor == 2 && len(r.Header.Values("Expect")) == 0 {
			return append(b, "100-continue"...)
		}
	}

	for i, value := range r.Header.Values(name) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, collapse(value)...)
	}

	return b
}

func collapse(value string) string {
	value = strings.Trim(value, " \t")
	if !strings.Contains(value, "  ") {
		return value
	}
	return strings.Join(strings.FieldsFunc(value, func(r rune) bool { return r == ' ' }), " ")
}

// parameter is a decoded query parameter.
type parameter struct{ name, value string }

// parseQuery decodes a raw query. A plus sign is a space, as in HTML forms;
// AWS's own signers write %20.
func parseQuery(raw string) ([]parameter, error) {
	if raw == "" {
		return nil, nil
	}

	var out []parameter
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}

		name, value, _ := strings.Cut(pair, "=")
		n, okName := unescape(name, true)
		v, okValue := unescape(value, true)
		if !okName || !okValue {
			return nil, fail("InvalidURI", "Couldn't parse the specified URI.")
		}

		out = append(out, parameter{n, v})
	}

	return out, nil
}

func hasParameter(query []parameter, name string) bool {
	return slices.ContainsFunc(query, func(p parameter) bool { return p.name == name })
}

// canonicalQuery sorts by encoded name, then by encoded value. It leaves
// out the signature.
func canonicalQuery(query []parameter) string {
	if len(query) == 0 {
		return ""
	}

	pairs := make([]parameter, 0, len(query))
	for _, p := range query {
		if p.name != "X-Amz-Signature" {
			pairs = append(pairs, parameter{escape(p.name, isPlain), escape(p.value, isPlain)})
		}
	}

	slices.SortFunc(pairs, func(a, b parameter) int {
		if n := strings.Compare(a.name, b.name); n != 0 {
			return n
		}
		return strings.Compare(a.value, b.value)
	})

	out := make([]string, len(pairs))
	for i, p := range pairs {
		out[i] = p.name + "=" + p.value
	}

	return strings.Join(out, "&")
}

// EscapePath percent-encodes a raw path as AWS does: all bytes except A-Z,
// a-z, 0-9, "-", ".", "_", "~" and "/".
func EscapePath(path string) string {
	if path == "" {
		return "/"
	}
	return escape(path, isPlainInPath)
}

// UnescapePath decodes a path once. A plus sign stays a plus sign. It
// returns an *Error with code InvalidURI for a percent sign without two hex
// digits.
func UnescapePath(raw string) (string, error) {
	path, ok := unescape(raw, false)
	if !ok {
		return "", fail("InvalidURI", "Couldn't parse the specified URI.")
	}
	return path, nil
}

const upperHex = "0123456789ABCDEF"

// escape percent-encodes the bytes that are not plain.
func escape(text string, isPlain func(byte) bool) string {
	plain := 0
	for plain < len(text) && isPlain(text[plain]) {
		plain++
	}
	if plain == len(text) {
		return text
	}

	var b strings.Builder
	b.Grow(len(text) + 2)
	b.WriteString(text[:plain])

	for i := plain; i < len(text); i++ {
		c := text[i]
		if isPlain(c) {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', upperHex[c>>4], upperHex[c&15]})
		}
	}

	return b.String()
}

// isPlain reports whether a byte of a query is not escaped.
func isPlain(c byte) bool {
	switch {
	case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		return true
	default:
		return c == '-' || c == '.' || c == '_' || c == '~'
	}
}

func isPlainInPath(c byte) bool { return c == '/' || isPlain(c) }

func unescape(text string, plusIsSpace bool) (string, bool) {
	if !strings.ContainsAny(text, "%+") {
		return text, true
	}

	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '%':
			if i+2 >= len(text) {
				return "", false
			}

			n, err := strconv.ParseUint(text[i+1:i+3], 16, 8)
			if err != nil || text[i+1] == '+' {
				return "", false
			}

			out = append(out, byte(n))
			i += 2
		case c == '+' && plusIsSpace:
			out = append(out, ' ')
		default:
			out = append(out, c)
		}
	}

	return string(out), true
}

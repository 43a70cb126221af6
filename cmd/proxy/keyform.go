package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// keySize is the size of a key in bytes.
const keySize = 32

// parseKey accepts a key in several forms: 32 raw bytes, hexadecimal digits,
// base64 with either alphabet and with or without padding, or PEM. Text may
// have white space around it. Text that is valid in two forms is refused,
// because one of them is the wrong key. Errors never quote the key.
func parseKey(text []byte) ([]byte, error) {
	trimmed := bytes.TrimSpace(text)
	switch {
	case len(trimmed) == 0:
		return nil, errors.New("no key: the input is empty or only white space")
	case len(text) == keySize && !isText(text):
		return bytes.Clone(text), nil
	case bytes.HasPrefix(trimmed, []byte("-----BEGIN")):
		return parsePEM(trimmed)
	case len(text) == keySize:
		return nil, fmt.Errorf(
			"%d bytes of text, which are not a raw key: is it a passphrase, or a shorter key in another form?",
			keySize,
		)
	case bytes.ContainsFunc(trimmed, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, fmt.Errorf("%d bytes that are not text on one line: a raw key has %d", len(text), keySize)
	}

	asHex, isHex := parseHex(trimmed)
	asBase64, isBase64 := parseBase64(trimmed)
	switch {
	case len(asHex) == keySize:
		clear(asBase64) // of 48 bytes
		return asHex, nil
	case isHex && len(asBase64) == keySize:
		return nil, fmt.Errorf("%d hexadecimal digits, which could also be base64", len(trimmed))
	case len(asBase64) == keySize:
		return asBase64, nil
	case isHex:
		return nil, fmt.Errorf("%d hexadecimal digits: a key has %d", len(trimmed), hex.EncodedLen(keySize))
	case isBase64:
		return nil, fmt.Errorf("base64 of %d bytes: a key has %d", len(asBase64), keySize)
	default:
		return nil, errors.New("neither raw, nor hexadecimal, nor base64, nor PEM")
	}
}

// isText reports whether someone could have typed text. Less than one in
// 10^11 random keys of 32 bytes looks like text.
func isText(text []byte) bool {
	return utf8.Valid(text) &&
		!bytes.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && !unicode.IsSpace(r) })
}

// parseHex returns a nil key for an odd number of digits.
func parseHex(text []byte) (key []byte, ok bool) {
	for _, c := range text {
		if !strings.ContainsRune("0123456789abcdefABCDEF", rune(c)) {
			return nil, false
		}
	}
	key = make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(key, text); err != nil {
		clear(key)
		return nil, true
	}
	return key, true
}

// parseBase64 accepts either alphabet (RFC 4648, sections 4 and 5), but not
// a mixture.
func parseBase64(text []byte) (key []byte, ok bool) {
	encoding := base64.StdEncoding
	if bytes.ContainsAny(text, "-_") {
		encoding = base64.URLEncoding
	}
	if !bytes.ContainsRune(text, '=') {
		encoding = encoding.WithPadding(base64.NoPadding)
	}

	key = make([]byte, encoding.DecodedLen(len(text)))
	n, err := encoding.Strict().Decode(key, text)
	if err != nil {
		clear(key)
		return nil, false
	}
	return key[:n], true
}

// parsePEM accepts a single block with no text around it. Programs use
// different types for keys, but a certificate, a public key or a private key
// is not an AES key, whatever its size.
func parsePEM(text []byte) ([]byte, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, errors.New("a damaged PEM block")
	}
	defer clear(block.Bytes)

	for _, other := range []string{"CERTIFICATE", "PUBLIC", "PRIVATE", "ENCRYPTED", "PARAMETERS"} {
		if strings.Contains(block.Type, other) {
			return nil, fmt.Errorf("PEM of type %q, which is not an AES key", block.Type)
		}
	}

	switch {
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("more than one PEM block")
	case len(block.Headers) > 0:
		return nil, errors.New("PEM with headers: is it encrypted?")
	case len(block.Bytes) != keySize:
		return nil, fmt.Errorf("PEM of %d bytes: a key has %d", len(block.Bytes), keySize)
	}

	return bytes.Clone(block.Bytes), nil
}

package tenantkit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Result is the result of one check.
type Result string

// The results.
const (
	OK         Result = "ok"
	Warn       Result = "warn"        // works, and the key's owner may want to change it
	Fail       Result = "FAIL"        // does not work, or the proxy was given too much
	NotChecked Result = "not checked" // and why
)

// Row is one check. All texts are printable.
type Row struct {
	Check    string `json:"check"` // a name for scripts
	Title    string `json:"title"`
	Result   Result `json:"result"`
	Evidence string `json:"evidence"`
	Do       string `json:"do,omitempty"` // what to do; "" for nothing
}

// Fact is something that a KMS says about a key.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Report is the result of Check. It has no secrets.
type Report struct {
	Tool       string     `json:"tool"` // with its version
	Time       string     `json:"time"` // RFC 3339, UTC
	Name       string     `json:"name"` // of the key in the configuration
	Provider   string     `json:"provider"`
	KeyID      string     `json:"key_id"` // in the KMS, as in the envelopes of objects
	Objects    string     `json:"objects"`
	Failed     int        `json:"failed"`
	Warned     int        `json:"warned"`
	NotChecked int        `json:"not_checked"`
	Rows       []Row      `json:"rows"`
	Facts      []Fact     `json:"facts"`
	Revocation Revocation `json:"revocation"`
}

// Revocation says how the key is taken away.
type Revocation struct {
	Window string   `json:"window"` // such as 12s
	How    []string `json:"how"`
	// Commands are for the key's owner, in a shell.
	Commands []string `json:"commands"`
}

// maxText limits each text from a KMS, in characters.
const maxText = 400

// clean makes a text printable: it replaces control characters and what
// changes the direction of text, and cuts off what is too long.
func clean(s string) string {
	runes := []rune(strings.ToValidUTF8(s, "?"))
	if len(runes) > maxText {
		runes = append(runes[:maxText], '…')
	}
	for i, r := range runes {
		switch {
		case r == '\n', r == '\r', r == '\t':
			runes[i] = ' '
		case !unicode.IsPrint(r):
			runes[i] = '?'
		}
	}
	return strings.TrimSpace(string(runes))
}

// add adds a row and counts it.
func (r *Report) add(row Row) {
	row.Title, row.Evidence, row.Do = clean(row.Title), clean(row.Evidence), clean(row.Do)
	switch row.Result {
	case Fail:
		r.Failed++
	case Warn:
		r.Warned++
	case NotChecked:
		r.NotChecked++
	case OK:
	}
	r.Rows = append(r.Rows, row)
}

// fact adds a fact, unless it is empty.
func (r *Report) fact(name, value string) {
	if value = clean(value); value != "" {
		r.Facts = append(r.Facts, Fact{clean(name), value})
	}
}

// JSON returns the report as JSON, ending in a line break, and the SHA-256 of
// that in hexadecimal.
func (r *Report) JSON() (text []byte, sum string, err error) {
	text, err = json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, "", err
	}
	text = append(text, '\n')
	hash := sha256.Sum256(text)
	return text, hex.EncodeToString(hash[:]), nil
}

// WriteText writes the report for a terminal.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "key %s (%s), %s\nobjects %s\n%s, %s\n\n", r.Name, r.Provider, r.KeyID, r.Objects, r.Tool, r.Time)
	for _, row := range r.Rows {
		fmt.Fprintf(&b, "%-12s %s: %s\n", row.Result, row.Title, row.Evidence)
		if row.Do != "" {
			fmt.Fprintf(&b, "%-12s what to do: %s\n", "", row.Do)
		}
	}

	if len(r.Facts) > 0 {
		b.WriteString("\nwhat the KMS says about the key\n")
	}
	for _, f := range r.Facts {
		fmt.Fprintf(&b, "%-12s %s: %s\n", "", f.Name, f.Value)
	}

	fmt.Fprintf(&b, "\nto revoke: unreadable within %s\n", r.Revocation.Window)
	for _, line := range append(r.Revocation.How, r.Revocation.Commands...) {
		fmt.Fprintf(&b, "%-12s %s\n", "", line)
	}
	fmt.Fprintf(&b, "\n%d checks: %d failed, %d warnings, %d not checked\n",
		len(r.Rows), r.Failed, r.Warned, r.NotChecked)

	_, err := io.WriteString(w, b.String())
	return err
}

package main

import (
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inventory"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// inventoryWriter writes an inventory in one of its formats.
type inventoryWriter interface {
	row(p inventory.Object) error
	end(t *inventoryTotals) error
}

// newInventoryWriter returns the writer for a format. Text that the format
// has no place for goes to aside.
func newInventoryWriter(format string, w, aside io.Writer) (inventoryWriter, error) {
	switch format {
	case "table":
		return &tableInventory{w: w}, nil
	case "csv":
		c := csv.NewWriter(w)
		c.UseCRLF = true
		return &csvInventory{w: c, aside: aside}, nil
	case "json":
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		return &jsonInventory{e}, nil
	}
	return nil, usageError{fmt.Errorf("--format is %q, and must be table, csv or json", format)}
}

// inventoryTotals is the summary of an inventory.
type inventoryTotals struct {
	Type      string        `json:"type"` // total
	Bucket    string        `json:"bucket"`
	Prefix    string        `json:"prefix,omitempty"`
	Versions  bool          `json:"versions"`
	Objects   int64         `json:"objects"` // or versions of objects; without those with an error
	Bytes     int64         `json:"bytes"`   // of plaintext
	Plaintext objectTotal   `json:"plaintext"`
	Formats   []formatTotal `json:"formats"`
	Errors    int64         `json:"errors"` // objects with an error
	ending

	keys   map[inventory.Key]*keyTotal
	broken []inventory.Object // the first ones
}

// maxBroken is how many objects with an error are listed once more at the end.
const maxBroken = 100

type objectTotal struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"` // of plaintext
}

func (t *objectTotal) add(size int64) {
	t.Objects++
	t.Bytes += max(size, 0)
}

// formatTotal is the total of the objects in one version of the format.
type formatTotal struct {
	Format crypt.Version `json:"format"`
	objectTotal
}

// keyTotal is the total of the objects under one version of a KMS key. An
// object under several keys counts for each.
type keyTotal struct {
	Type string `json:"type"` // summary
	inventory.Key
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"` // of plaintext
}

func newInventoryTotals(l stored.Listing) *inventoryTotals {
	t := &inventoryTotals{
		Type: "total", Bucket: l.Bucket, Prefix: l.Prefix, Versions: l.Versions,
		keys: make(map[inventory.Key]*keyTotal),
	}
	for version := crypt.Version(1); version <= crypt.Newest; version++ {
		t.Formats = append(t.Formats, formatTotal{Format: version})
	}
	return t
}

// noKey is the Key of plaintext objects in the summary.
var noKey = inventory.Key{ID: inventory.Plaintext, Name: "-", Version: "-", Recovery: "-"}

func (t *inventoryTotals) add(p inventory.Object) {
	if p.Kind == inventory.Broken {
		t.Errors++
		if len(t.broken) < maxBroken {
			t.broken = append(t.broken, p)
		}
		return
	}
	t.Objects++
	t.Bytes += max(p.Size, 0)

	keys := p.Keys
	if p.Kind == inventory.Plaintext {
		keys = []inventory.Key{noKey}
		t.Plaintext.add(p.Size)
	}
	for i := range t.Formats {
		if t.Formats[i].Format == p.Format {
			t.Formats[i].add(p.Size)
		}
	}

	for _, k := range keys {
		total := t.keys[k]
		if total == nil {
			total = &keyTotal{Type: "summary", Key: k}
			t.keys[k] = total
		}
		total.Objects++
		total.Bytes += max(p.Size, 0)
	}
}

// sorted returns the summary in a fixed order.
func (t *inventoryTotals) sorted() []*keyTotal {
	var out []*keyTotal
	for _, total := range t.keys {
		out = append(out, total)
	}
	slices.SortFunc(
		out,
		func(a, b *keyTotal) int {
			return cmp.Or(
				cmp.Compare(a.ID, b.ID), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Recovery, b.Recovery),
			)
		},
	)
	return out
}

func (t *inventoryTotals) print(w io.Writer) error {
	const columns = "  %-12s  %-8s  %-25s  %s\n"
	_, err := fmt.Fprintf(
		w, "%10s  %16s"+columns, "OBJECTS", "BYTES", "NAME", "VERSION", "RECOVERY KEY", "KMS KEY",
	)
	if err != nil {
		return err
	}
	for _, k := range t.sorted() {
		_, err := fmt.Fprintf(w, "%10d  %16d"+columns, k.Objects, k.Bytes, k.Name, k.Version, k.Recovery, k.ID)
		if err != nil {
			return err
		}
	}
	return t.printFormats(w)
}

// printFormats prints the totals that do not depend on keys.
func (t *inventoryTotals) printFormats(w io.Writer) error {
	type line struct {
		what string
		objectTotal
	}
	var lines []line
	for _, f := range t.Formats {
		lines = append(lines, line{fmt.Sprintf("in format %d", f.Format), f.objectTotal})
	}
	lines = append(lines, line{"plaintext", t.Plaintext})

	fmt.Fprintln(w)
	for _, l := range lines {
		if l.Objects > 0 {
			fmt.Fprintf(w, "%10d  %16d  %s\n", l.Objects, l.Bytes, l.what)
		}
	}
	if t.Errors > 0 {
		fmt.Fprintf(w, "%10d  objects with an error\n", t.Errors)
	}
	_, err := fmt.Fprintf(
		w, "%10d  %16d  in all below s3://%s/%s\n", t.Objects, t.Bytes, t.Bucket, visible(t.Prefix),
	)
	return errors.Join(err, t.ending.print(w))
}

// tableInventory is the format for people.
type tableInventory struct {
	w     io.Writer
	begun bool
}

func (t *tableInventory) row(p inventory.Object) error {
	if !t.begun {
		t.begun = true
		if _, err := fmt.Fprintf(t.w, "%16s  %-16s  %-24s  %s\n", "SIZE", "KIND", "KMS KEY", "OBJECT"); err != nil {
			return err
		}
	}

	size, kind, object := "-", p.Kind, visible(p.Key)
	if p.Size >= 0 {
		size = strconv.FormatInt(p.Size, 10)
	}
	if p.Kind == inventory.Multipart {
		kind = fmt.Sprintf("%s, %d", p.Kind, p.Parts)
	}

	var keys []string
	for _, k := range p.Keys {
		name := k.Name
		if name == "-" {
			name = k.ID
		}
		if k.Version != "-" {
			name += " v" + k.Version
		}

		keys = append(keys, name)
	}

	if p.Version != "" {
		object += "  version " + p.Version
	}
	if p.Error != "" {
		object += "  " + p.Error
	}
	_, err := fmt.Fprintf(t.w, "%16s  %-16s  %-24s  %s\n", size, kind, cmp.Or(strings.Join(keys, ", "), "-"), object)

	return err
}

// visible quotes a key that is not printable, so that it cannot look like
// another line or control the terminal.
func visible(key string) string {
	if strings.IndexFunc(key, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) >= 0 {
		return strconv.Quote(key)
	}
	return key
}

func (t *tableInventory) end(totals *inventoryTotals) error {
	if t.begun {
		fmt.Fprintln(t.w)
	}
	return totals.print(t.w)
}

// csvInventory writes the summary to aside, because all CSV records must
// have the same columns.
type csvInventory struct {
	w     *csv.Writer
	aside io.Writer
	begun bool
}

// csvHeader names the columns. If an object is under several keys, one field
// has all of them, separated by spaces.
var csvHeader = []string{
	"key",
	"version_id",
	"latest",
	"size",
	"kind",
	"parts",
	"kms_key_ids",
	"kms_key_names",
	"kms_key_versions",
	"recovery_keys",
	"error",
	"etag",
}

func (c *csvInventory) header() error {
	if c.begun {
		return nil
	}
	c.begun = true
	return c.w.Write(csvHeader)
}

func (c *csvInventory) row(p inventory.Object) error {
	if err := c.header(); err != nil {
		return err
	}
	var ids, names, versions, recovery []string
	for _, k := range p.Keys {
		ids, names, versions = append(ids, k.ID), append(names, k.Name), append(versions, k.Version)
		recovery = append(recovery, strings.Fields(k.Recovery)...)
	}

	size, parts := "", ""
	if p.Size >= 0 {
		size = strconv.FormatInt(p.Size, 10)
	}
	if p.Kind == inventory.Multipart {
		parts = strconv.Itoa(p.Parts)
	}

	return c.w.Write(forSpreadsheets([]string{
		p.Key, p.Version, strconv.FormatBool(p.Latest), size, p.Kind, parts,
		strings.Join(ids, " "), strings.Join(names, " "), strings.Join(versions, " "),
		strings.Join(slices.Compact(recovery), " "), p.Error, p.ETag,
	}))
}

// forSpreadsheets puts an apostrophe before a field that a spreadsheet would
// treat as a formula: clients choose object keys. A field that starts with
// an apostrophe also gets one, so that fromSpreadsheets can undo it.
func forSpreadsheets(fields []string) []string {
	for i, f := range fields {
		if f != "" && f != "-" && strings.ContainsRune("=+-@\t\r'", rune(f[0])) {
			fields[i] = "'" + f
		}
	}
	return fields
}

// fromSpreadsheets removes that apostrophe.
func fromSpreadsheets(field string) string {
	if len(field) > 1 && field[0] == '\'' && strings.ContainsRune("=+-@\t\r'", rune(field[1])) {
		return field[1:]
	}
	return field
}

func (c *csvInventory) end(totals *inventoryTotals) error {
	if err := c.header(); err != nil {
		return err
	}
	c.w.Flush()
	if err := c.w.Error(); err != nil {
		return err
	}
	return totals.print(c.aside)
}

// jsonInventory ends with one line of type summary for each key, and one of
// type total.
type jsonInventory struct{ e *json.Encoder }

func (j *jsonInventory) row(p inventory.Object) error { return j.e.Encode(p) }

func (j *jsonInventory) end(totals *inventoryTotals) error {
	for _, k := range totals.sorted() {
		if err := j.e.Encode(k); err != nil {
			return err
		}
	}
	return j.e.Encode(totals)
}

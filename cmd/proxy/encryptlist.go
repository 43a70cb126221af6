package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inventory"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// objectList is what a bucket held before its migration. Objects that came
// later may have been planted.
type objectList struct {
	digest  string // of the file, in hexadecimal
	objects map[string]listedObject
}

// listedObject is one object of the list. The ETag or the version may be
// empty, but not both.
type listedObject struct {
	etag, version string
	size          int64
}

// errUnlisted is the error for an object that is not in the list.
var errUnlisted = errors.New("skipped because of --only-listed")

// readObjectList reads the FILE of --only-listed: an inventory of this
// program in CSV or JSON, or an Amazon S3 Inventory in CSV with a first line
// that names its columns.
func readObjectList(path string) (*objectList, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	sum := sha256.New()
	text := bufio.NewReader(io.TeeReader(file, sum))

	l := &objectList{objects: make(map[string]listedObject)}
	first, err := text.Peek(1)
	if err != nil {
		return nil, fmt.Errorf("%s is empty", path)
	}

	if first[0] == '{' {
		err = l.readJSON(text)
	} else {
		err = l.readCSV(text)
	}

	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	l.digest = hex.EncodeToString(sum.Sum(nil))
	return l, nil
}

func (l *objectList) readJSON(text io.Reader) error {
	for d, n := json.NewDecoder(text), 1; ; n++ {
		var p inventory.Object
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("object %d: %w", n, err)
		}
		if p.Type != "object" || p.Kind != inventory.Plaintext || !p.Latest && p.Version != "" {
			continue
		}

		if err := l.add(p.Key, listedObject{p.ETag, p.Version, p.Size}); err != nil {
			return fmt.Errorf("object %d: %w", n, err)
		}
	}
}

// listColumns are the columns that are read: their names in this program's
// inventory, and in Amazon S3 Inventory.
var listColumns = [][2]string{
	{"key", "Key"},
	{"version_id", "VersionId"},
	{"latest", "IsLatest"},
	{"size", "Size"},
	{"kind", ""},
	{"etag", "ETag"},
	{"", "IsDeleteMarker"},
}

func (l *objectList) readCSV(text io.Reader) error {
	r := csv.NewReader(text)
	names, err := r.Read()
	if err != nil {
		return err
	}
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}

	columns := make([]int, len(listColumns))
	for i, c := range listColumns {
		columns[i] = slices.IndexFunc(
			names,
			func(name string) bool { return name != "" && (name == c[0] || name == c[1]) },
		)
	}

	if columns[0] < 0 || columns[3] < 0 || columns[1] < 0 && columns[5] < 0 {
		return errors.New("the first line must name the columns key, size, and etag or version_id " +
			"(for Amazon S3 Inventory, copy the names from fileSchema in its manifest)")
	}

	ours := names[columns[0]] == listColumns[0][0]
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}

		if err := l.addRecord(record, columns, ours); err != nil {
			line, _ := r.FieldPos(0)
			return fmt.Errorf("line %d: %w", line, err)
		}
	}
}

// addRecord adds one line of CSV. ours means that it is from this program's
// inventory. In Amazon S3 Inventory, keys are escaped as in a query.
func (l *objectList) addRecord(record []string, columns []int, ours bool) error { //nolint:revive // ours is the format
	fields := make([]string, len(columns))
	for i, at := range columns {
		if at >= 0 {
			fields[i] = fromSpreadsheets(record[at])
		}
	}

	key, kind := fields[0], fields[4]
	if fields[2] == "false" || fields[6] == "true" || kind != "" && kind != inventory.Plaintext {
		return nil
	}

	if !ours {
		var err error
		if key, err = url.QueryUnescape(record[columns[0]]); err != nil {
			return err
		}
	}

	size, err := strconv.ParseInt(fields[3], 10, 64)
	if err != nil {
		return fmt.Errorf("the size of %q is not a number", key)
	}
	return l.add(key, listedObject{fields[5], fields[1], size})
}

func (l *objectList) add(key string, o listedObject) error {
	o.etag = strings.Trim(o.etag, `"`)
	if o.version == "null" { // stored before the bucket kept versions
		o.version = ""
	}

	switch _, twice := l.objects[key]; {
	case key == "" || o.size < 0:
		return errors.New("an object without a key or a size")
	case o.etag == "" && o.version == "":
		return fmt.Errorf("%q has neither an ETag nor a version id, so another object could take its place", key)
	case twice:
		return fmt.Errorf("%q is listed twice", key)
	}

	l.objects[key] = o
	return nil
}

// check returns an error for an object that is not in the list, or that has
// changed.
func (l *objectList) check(obj crypt.Object, seen *stored.Seen) error {
	want, ok := l.objects[obj.Key]
	version := seen.Header.Get("X-Amz-Version-Id")
	switch {
	case !ok:
		return fmt.Errorf("%w: it is not in the list", errUnlisted)
	case want.size != seen.Stored:
		return fmt.Errorf("%w: it has %d bytes, the list says %d", errUnlisted, seen.Stored, want.size)
	case want.etag != "" && want.etag != strings.Trim(seen.ETag, `"`):
		return fmt.Errorf("%w: its ETag is %s, the list says %q", errUnlisted, seen.ETag, want.etag)
	case want.version != "" && want.version != version:
		return fmt.Errorf("%w: its version id is %q, the list says %q", errUnlisted, version, want.version)
	default:
		return nil
	}
}

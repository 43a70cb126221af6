package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// adoption maps the new names of objects to their old ones. Nothing but the
// operator's command line decides it.
type adoption struct {
	now, old crypt.Object // a bucket and a prefix each
	names    *nameList    // nil if the prefixes decide
}

// adoption returns nil without --adopt.
func (o *rewrapOptions) adoption(target crypt.Object) (*adoption, error) {
	switch {
	case o.adopt == "" && o.names == "":
		return nil, nil //nolint:nilnil // documented
	case o.adopt == "":
		return nil, usageError{errors.New("--names needs --adopt s3://BUCKET, the bucket of the old keys")}
	case o.all:
		return nil, usageError{errors.New("--all is for another version of the key, and not for --adopt")}
	}

	old, err := parseBucket(o.adopt)
	if err != nil {
		return nil, fmt.Errorf("--adopt: %w", err)
	}
	a := &adoption{now: target, old: old}

	switch {
	case o.names == "" && endsName(old.Key) != endsName(target.Key):
		return nil, usageError{fmt.Errorf(
			"the prefixes %q and %q are replaced as text: end both with /, or neither", old.Key, target.Key)}
	case o.names == "":
		return a, nil
	case old.Key != "" || target.Key != "":
		return nil, usageError{errors.New("with --names, give both buckets without a prefix: the file has whole keys")}
	}

	a.names, err = readNameList(o.names)
	return a, err
}

// endsName reports whether a prefix is one of whole names between slashes.
func endsName(prefix string) bool { return prefix == "" || strings.HasSuffix(prefix, "/") }

// oldName returns the name under which an object was put.
func (a *adoption) oldName(obj crypt.Object) (crypt.Object, error) {
	old := crypt.Object{Bucket: a.old.Bucket}
	if a.names != nil {
		old.Key = a.names.old[obj.Key]
	} else if rest, ok := strings.CutPrefix(obj.Key, a.now.Key); ok {
		old.Key = a.old.Key + rest
	}

	if old.Key == "" {
		return old, errors.New("the command line gives it no old name")
	}
	return old, nil
}

// doer processes one object.
type doer = func(context.Context, stored.Entry) walk.Result

// walk completes the state of a walk. With a list of names, it returns a
// lister of their objects, and a doer that fails for those that the bucket
// does not have.
func (a *adoption) walk(state *walk.State, list lister, do doer) (lister, doer) {
	state.Adopt = "s3://" + a.old.Bucket + "/" + a.old.Key
	if a.names == nil {
		return list, do
	}

	state.Listed = a.names.digest
	return a.names.list, func(ctx context.Context, e stored.Entry) walk.Result {
		r := do(ctx, e)
		if r.Outcome == walk.Gone {
			r.Outcome, r.Own = walk.Failed, true
			r.Err = errors.New("the bucket has no such object: correct its line of the file, or remove it")
		}
		return r
	}
}

// nameList is the FILE of --names.
type nameList struct {
	digest string            // of the file, in hexadecimal
	old    map[string]string // old keys, by new key
}

// nameColumns is the first line of the file. It is required, because the
// columns in the other order would mean something else.
var nameColumns = []string{"old_key", "new_key"}

func readNameList(path string) (*nameList, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()

	sum := sha256.New()
	l := &nameList{old: make(map[string]string)}
	if err := l.read(csv.NewReader(bufio.NewReader(io.TeeReader(file, sum)))); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	l.digest = hex.EncodeToString(sum.Sum(nil))
	return l, nil
}

func (l *nameList) read(r *csv.Reader) error {
	r.FieldsPerRecord = len(nameColumns)
	first, err := r.Read()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !slices.Equal(first, nameColumns) {
		return errors.New("the first line must be old_key,new_key")
	}

	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}

		old, now := fromSpreadsheets(record[0]), fromSpreadsheets(record[1])
		line, _ := r.FieldPos(0)
		switch _, twice := l.old[now]; {
		case old == "" || now == "":
			return fmt.Errorf("line %d: a key is empty", line)
		case !utf8.ValidString(old) || !utf8.ValidString(now):
			return fmt.Errorf("line %d: a key is not UTF-8", line)
		case twice:
			return fmt.Errorf("line %d: the new key %q is there twice", line, now)
		}
		l.old[now] = old
	}
}

// list yields the new keys in the order in which a store lists them.
func (l *nameList) list(ctx context.Context, from stored.Listing) iter.Seq2[stored.Entry, error] {
	return func(yield func(stored.Entry, error) bool) {
		for _, key := range slices.Sorted(maps.Keys(l.old)) {
			if key <= from.After {
				continue
			}
			if err := ctx.Err(); !yield(stored.Entry{Key: key}, err) || err != nil {
				return
			}
		}
	}
}

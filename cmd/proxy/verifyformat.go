package main

import (
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/maintain/verify"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
)

// faulty is an object that failed verification.
type faulty struct {
	Type    string       `json:"type"` // object
	Key     string       `json:"key"`
	Version string       `json:"version_id,omitempty"`
	Fault   verify.Fault `json:"fault"`
	Keys    []keyName    `json:"kms_keys"` // as far as the envelope was read
	Error   string       `json:"error"`
}

// keyName is a KMS key: its id, and its name in the configuration, "-" if it
// has no name.
type keyName struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

func faultOf(r walk.Result, names map[string]string) faulty {
	f := faulty{
		Type:    "object",
		Key:     r.Key,
		Version: r.Version,
		Fault:   verify.FaultOf(r.Err),
		Keys:    []keyName{},
		Error:   r.Err.Error(),
	}
	for _, id := range r.KeyIDs {
		f.Keys = append(f.Keys, keyName{id, cmp.Or(names[id], "-")})
	}
	return f
}

// faultTotals is the summary of a run.
type faultTotals struct {
	Type      string                 `json:"type"` // summary
	Verified  int64                  `json:"verified"`
	Bytes     int64                  `json:"bytes"`     // plaintext bytes of verified objects
	Plaintext int64                  `json:"plaintext"` // allowed by the rules
	Gone      int64                  `json:"gone"`
	Customer  int64                  `json:"customer_keys"` // under customer keys: not read
	Failed    int64                  `json:"failed"`
	Faults    map[verify.Fault]int64 `json:"faults"`
	// By id of a recovery key, the verified objects that it opens; "-" has
	// those that none opens.
	Recovery map[string]int64 `json:"recovery"`
	ending
}

func newFaultTotals() *faultTotals {
	return &faultTotals{Type: "summary", Faults: make(map[verify.Fault]int64), Recovery: make(map[string]int64)}
}

func (t *faultTotals) add(r walk.Result) {
	switch r.Outcome {
	case walk.Done:
		t.Verified++
		t.Bytes += r.Size
		for _, id := range r.Recovery {
			t.Recovery[id]++
		}
		if len(r.Recovery) == 0 {
			t.Recovery[noRecovery]++
		}
	case walk.Plaintext:
		t.Plaintext++
	case walk.Gone:
		t.Gone++
	case walk.Customer:
		t.Customer++
	default:
		t.Failed++
		t.Faults[verify.FaultOf(r.Err)]++
	}
}

// noRecovery stands in for the id of a recovery key.
const noRecovery = "-"

func (t *faultTotals) print(w io.Writer) error {
	const format = "verified   %d objects, %d bytes\n" +
		"plaintext  %d, allowed by the rules\n" +
		"skipped    %d deleted during the run, %d under customer keys (SSE-C)\n" +
		"failed     %d\n"
	if _, err := fmt.Fprintf(w, format,
		t.Verified, t.Bytes, t.Plaintext, t.Gone, t.Customer, t.Failed); err != nil {
		return err
	}

	for _, fault := range verify.Faults {
		if n := t.Faults[fault]; n > 0 {
			if _, err := fmt.Fprintf(w, "           %d %s\n", n, fault); err != nil {
				return err
			}
		}
	}

	return errors.Join(t.printRecovery(w), t.ending.print(w))
}

// printRecovery prints which recovery keys open the objects.
func (t *faultTotals) printRecovery(w io.Writer) error {
	if t.Recovery[noRecovery] == t.Verified { // the feature is not used
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(t.Recovery)) {
		what := id
		if id == noRecovery {
			what = "objects that no recovery key opens"
		}
		if _, err := fmt.Fprintf(w, "recovery   %d %s\n", t.Recovery[id], what); err != nil {
			return err
		}
	}
	return nil
}

// faultWriter writes the objects that failed, and the summary.
type faultWriter interface {
	row(f faulty) error
	end(t *faultTotals) error
}

// newFaultWriter returns the writer for a format. Text that the format has
// no place for goes to aside.
func newFaultWriter(format string, w, aside io.Writer) (faultWriter, error) {
	switch format {
	case "table":
		return &tableFaults{w: w}, nil
	case "csv":
		c := csv.NewWriter(w)
		c.UseCRLF = true
		return &csvFaults{c, aside}, c.Write(faultColumns)
	case "json":
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		return &jsonFaults{e}, nil
	}
	return nil, usageError{fmt.Errorf("--format is %q, and must be table, csv or json", format)}
}

// tableFaults is the format for people.
type tableFaults struct{ w io.Writer }

func (t *tableFaults) row(f faulty) error {
	var keys []string
	for _, k := range f.Keys {
		if k.Name == "-" {
			k.Name = k.ID
		}
		keys = append(keys, k.Name)
	}

	object := visible(f.Key)
	if f.Version != "" {
		object += "  version " + f.Version
	}

	_, err := fmt.Fprintf(
		t.w,
		"FAILED  %-15s  %-24s  %s: %s\n",
		f.Fault,
		cmp.Or(strings.Join(keys, ", "), "-"),
		object,
		f.Error,
	)

	return err
}

func (t *tableFaults) end(totals *faultTotals) error { return totals.print(t.w) }

// csvFaults writes the summary to aside, because all CSV records must have
// the same columns.
type csvFaults struct {
	w     *csv.Writer
	aside io.Writer
}

// faultColumns names the columns. If an object is under several keys, one
// field has all of them, separated by spaces.
var faultColumns = []string{"key", "version_id", "fault", "kms_key_ids", "kms_key_names", "error"}

func (c *csvFaults) row(f faulty) error {
	var ids, names []string
	for _, k := range f.Keys {
		ids, names = append(ids, k.ID), append(names, k.Name)
	}
	row := []string{f.Key, f.Version, string(f.Fault), strings.Join(ids, " "), strings.Join(names, " "), f.Error}
	if err := c.w.Write(forSpreadsheets(row)); err != nil {
		return err
	}
	c.w.Flush() // a run can take hours
	return c.w.Error()
}

func (c *csvFaults) end(totals *faultTotals) error {
	c.w.Flush()
	if err := c.w.Error(); err != nil {
		return err
	}
	return totals.print(c.aside)
}

// jsonFaults ends with one line of type summary.
type jsonFaults struct{ e *json.Encoder }

func (j *jsonFaults) row(f faulty) error { return j.e.Encode(f) }

func (j *jsonFaults) end(totals *faultTotals) error { return j.e.Encode(totals) }

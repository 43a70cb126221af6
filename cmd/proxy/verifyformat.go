package main

import (
	"cmp"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/maintain/verify"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
)

// faulty is an object that does not verify.
type faulty struct {
	Type    string       `json:"type"` // object
	Key     string       `json:"key"`
	Version string       `json:"version_id,omitempty"`
	Fault   verify.Fault `json:"fault"`
	Keys    []keyName    `json:"kms_keys"` // that the envelope names, as far as it was read
	Error   string       `json:"error"`
}

// keyName is a KMS key by its id and by its name in the configuration, "-" if
// it has none.
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

// faultTotals is the summary.
type faultTotals struct {
	Type      string                 `json:"type"` // summary
	Verified  int64                  `json:"verified"`
	Bytes     int64                  `json:"bytes"`     // of the plaintext of those
	Plaintext int64                  `json:"plaintext"` // allowed to be
	Gone      int64                  `json:"gone"`
	Customer  int64                  `json:"customer_keys"` // under keys that clients bring: not read
	Failed    int64                  `json:"failed"`
	Faults    map[verify.Fault]int64 `json:"faults"`
}

func newFaultTotals() *faultTotals {
	return &faultTotals{Type: "summary", Faults: make(map[verify.Fault]int64)}
}

func (t *faultTotals) add(r walk.Result) {
	switch r.Outcome {
	case walk.Done:
		t.Verified++
		t.Bytes += r.Size
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

func (t *faultTotals) print(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "verified   %d objects, %d bytes\nplaintext  %d, which the rules allow\nskipped    %d deleted meanwhile, %d under keys that clients bring (SSE-C)\nfailed     %d\n",
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
	return nil
}

// faultWriter writes what does not verify, and the summary.
type faultWriter interface {
	row(f faulty) error
	end(t *faultTotals) error
}

// newFaultWriter returns the writer for a format. What a format has no place
// for goes to aside.
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

// tableFaults is for people.
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

// csvFaults has the summary beside it, as all its records are alike.
type csvFaults struct {
	w     *csv.Writer
	aside io.Writer
}

// faultColumns names the columns. Several keys are in one field each, with a
// space in between.
var faultColumns = []string{"key", "version_id", "fault", "kms_key_ids", "kms_key_names", "error"}

func (c *csvFaults) row(f faulty) error {
	var ids, names []string
	for _, k := range f.Keys {
		ids, names = append(ids, k.ID), append(names, k.Name)
	}
	if err := c.w.Write(forSpreadsheets([]string{f.Key, f.Version, string(f.Fault), strings.Join(ids, " "), strings.Join(names, " "), f.Error})); err != nil {
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

// jsonFaults ends with a line of type summary.
type jsonFaults struct{ e *json.Encoder }

func (j *jsonFaults) row(f faulty) error { return j.e.Encode(f) }

func (j *jsonFaults) end(totals *faultTotals) error { return j.e.Encode(totals) }

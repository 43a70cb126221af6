//go:build !nodev

package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/maintain/inventory"
)

func TestInventory(t *testing.T) {
	m := newMove(t)
	odd := "dir/a,b \"c\"\u00a0ü"
	m.put("empty", nil)
	m.put(odd, text(1, 70_000))
	m.upload("parts", []int32{1, 2}, 5<<20, 6<<20) // a part is appended

	plain := "plain"
	if _, err := m.direct.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &m.bucket, Key: &plain, Body: strings.NewReader("12345"),
	}); err != nil {
		t.Fatal(err)
	}
	m.command(0, "rewrap", "--config", m.both, "s3://bucket/empty", "--to", "new")

	// The command must work even if both keys are lost.
	for _, file := range m.keys {
		if err := os.Rename(file, file+".away"); err != nil {
			t.Fatal(err)
		}
	}

	lost := m.command(0, "inventory", "--config", m.both, "s3://bucket", "--format", "csv")
	if !strings.Contains(lost, "empty,,true,0,single,,local:") || !strings.Contains(lost, ",-,1,-,,") {
		t.Errorf("without its keys:\n%s", lost)
	}

	for _, file := range m.keys {
		if err := os.Rename(file+".away", file); err != nil {
			t.Fatal(err)
		}
	}

	table := m.command(0, "inventory", "--config", m.both, "s3://bucket")
	for _, want := range []string{
		"multipart, 3", "old v1", "new v1", "plaintext", "11534336", "         2          11604336  old",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("the table has no %q:\n%s", want, table)
		}
	}

	prefix := m.command(0, "inventory", "--config", m.both, "s3://bucket/dir/", "--format", "csv")
	if strings.Count(prefix, "\r\n") != 2 {
		t.Errorf("below a prefix:\n%s", prefix)
	}

	var rows, summary output
	if code := run(t.Context(), []string{
		"inventory", "--config", m.both, "s3://bucket", "--format", "csv",
	}, &rows, &summary); code != 0 ||
		!strings.Contains(summary.String(), "OBJECTS") {
		t.Fatalf("exit code %d, summary on stderr: %s", code, &summary)
	}

	records, err := csv.NewReader(strings.NewReader(rows.String())).ReadAll()
	if err != nil || len(records) != 5 {
		t.Fatalf("%d records, %v", len(records), err)
	}

	kinds := make(map[string]string)
	for _, r := range records[1:] {
		kinds[r[0]] = strings.Join([]string{r[3], r[4], r[5], r[7], r[8]}, " ")
	}

	if want := map[string]string{
		"empty": "0 single  new 1", odd: "70000 single  old 1", "parts": "11534336 multipart 3 old 1",
		"plain": "5 plaintext   ",
	}; !maps.Equal(kinds, want) {
		t.Errorf("%v", kinds)
	}
	m.broken(table)
}

// broken stores objects whose envelopes or headers are wrong.
func (m *move) broken(table string) {
	m.t.Helper()
	put := func(key string, metadata map[string]string, n int) {
		m.t.Helper()
		if _, err := m.direct.PutObject(m.t.Context(), &s3.PutObjectInput{
			Bucket: &m.bucket, Key: &key, Metadata: metadata, Body: bytes.NewReader(text(3, n)),
		}); err != nil {
			m.t.Fatal(err)
		}
	}

	head, err := m.direct.HeadObject(m.t.Context(), &s3.HeadObjectInput{Bucket: &m.bucket, Key: aws.String("empty")})
	if err != nil {
		m.t.Fatal(err)
	}
	put("zz-half", map[string]string{"cmek-v": "1"}, 10)
	put("zz-size", head.Metadata, 57) // one byte too long
	put(
		"zz-mark",
		map[string]string{"cmek-v": "1", "cmek-suite": "1", "cmek-type": "multipart", "cmek-key": "id"},
		20_000,
	)

	out := m.command(1, "inventory", "--config", m.both, "s3://bucket")
	for _, key := range []string{"zz-half", "zz-size", "zz-mark"} {
		if !strings.Contains(out, key+"  ") {
			m.t.Errorf("no error at %s:\n%s", key, out)
		}
	}

	if !strings.Contains(out, "cannot determine the KMS key of 3 objects") ||
		strings.Count(table, "\n") >= strings.Count(out, "\n") {
		m.t.Errorf("the table:\n%s", out)
	}

	quick, _ := m.keysOf(m.both, 1, "--quick")
	if quick["zz-mark"] != "multipart -" || quick["parts"] != "multipart old" || quick["zz-half"] != "error" {
		m.t.Errorf("--quick: %v", quick)
	}
}

func TestInventoryCommandLines(t *testing.T) {
	config := writeConfig(t, "http://127.0.0.1:1", "127.0.0.1:0", "127.0.0.1:1")
	for _, row := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"inventory", "--config", config}, 2, "want one s3://"},
		{[]string{"inventory", "--config", config, "bucket"}, 2, "not of the form"},
		{[]string{"inventory", "--config", config, "s3://"}, 2, "not of the form"},
		{[]string{"inventory", "--config", config, "s3://b", "--format", "xml"}, 2, "must be table, csv or json"},
		{[]string{"inventory", "--config", config, "s3://b", "--parallel", "0"}, 2, "--parallel"},
		{[]string{"inventory", "s3://b"}, 2, "give --config FILE"},
		{[]string{"rewrap", "--config", config, "s3://b", "--rate", "-1"}, 2, "--rate"},
		{[]string{"rewrap", "--config", config, "s3://b", "--method", "pray"}, 2, "--method"},
		{[]string{"rewrap", "--config", config, "s3://b", "--parallel", "1001"}, 2, "--parallel"},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), row.args, &out, &out); code != row.code ||
			!strings.Contains(out.String(), row.want) {
			t.Errorf("%q: exit code %d, printed %q", row.args, code, out.String())
		}
	}
}

// newVersioned is newMove with a bucket that keeps versions.
func newVersioned(t *testing.T) *move {
	t.Helper()
	m := newMove(t)
	if _, err := m.direct.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
		Bucket:                  &m.bucket,
		VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

// Old versions stay under the old key. The command says so, and inventory
// counts them.
func TestVersions(t *testing.T) {
	m := newVersioned(t)
	for i := range 3 {
		m.put("k", text(uint64(i), 1000+i))
	}
	m.put("other", text(9, 10))

	out := m.command(0, "rewrap", "--config", m.both, "s3://bucket", "--to", "new")
	if !strings.Contains(out, "the bucket keeps old versions") || !strings.Contains(out, "rewrapped  2 objects") {
		t.Errorf("no word of the versions:\n%s", out)
	}

	var current, old int
	for line := range strings.Lines(
		m.command(0, "inventory", "--config", m.both, "s3://bucket", "--versions", "--format", "json"),
	) {
		var p inventory.Object
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatal(err)
		}
		if p.Type != "object" {
			continue
		}

		want := map[bool]string{true: "new", false: "old"}[p.Latest]
		if len(p.Keys) != 1 || p.Keys[0].Name != want || p.Version == "" {
			t.Errorf("%+v", p)
		}

		if p.Latest {
			current++
		} else {
			old++
		}
	}

	if current != 2 || old != 4 { // three were overwritten by clients and rewrap, and one belongs to the other object
		t.Errorf("%d current and %d old versions", current, old)
	}
	m.readable(m.app)
}

// TestFieldsForSpreadsheets: an object key never becomes a formula.
func TestFieldsForSpreadsheets(t *testing.T) {
	in := []string{"=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "a=b", "", "'x", "-", "'-1"}
	want := []string{"'=cmd|' /C calc'!A0", "'+1", "'-1", "'@SUM(A1)", "'\tx", "'\rx", "a=b", "", "''x", "-", "''-1"}
	if got := forSpreadsheets(slices.Clone(in)); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for i, field := range want {
		if got := fromSpreadsheets(field); got != in[i] {
			t.Errorf("%q read back: %q, want %q", field, got, in[i])
		}
	}
}

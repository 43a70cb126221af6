//go:build !nodev

package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// raw is an object as it is in the store.
type raw struct {
	metadata map[string]string
	body     []byte
}

func (m *move) raw(key string) raw {
	m.t.Helper()
	out, err := m.direct.GetObject(m.t.Context(), &s3.GetObjectInput{Bucket: &m.bucket, Key: &key})
	if err != nil {
		m.t.Fatal(err)
	}
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return raw{out.Metadata, body}
}

// putRaw stores an object unchanged: with one PUT, or in parts.
func (m *move) putRaw(key string, metadata map[string]string, parts ...[]byte) {
	m.t.Helper()
	if len(parts) == 1 {
		if _, err := m.direct.PutObject(m.t.Context(), &s3.PutObjectInput{
			Bucket: &m.bucket, Key: &key, Metadata: metadata, Body: bytes.NewReader(parts[0]),
		}); err != nil {
			m.t.Fatal(err)
		}
		return
	}

	up, err := m.direct.CreateMultipartUpload(
		m.t.Context(),
		&s3.CreateMultipartUploadInput{Bucket: &m.bucket, Key: &key, Metadata: metadata},
	)
	if err != nil {
		m.t.Fatal(err)
	}

	var done []types.CompletedPart
	for i, part := range parts {
		number := int32(i + 1)
		out, err := m.direct.UploadPart(
			m.t.Context(),
			&s3.UploadPartInput{
				Bucket:     &m.bucket,
				Key:        &key,
				UploadId:   up.UploadId,
				PartNumber: &number,
				Body:       bytes.NewReader(part),
			},
		)
		if err != nil {
			m.t.Fatal(err)
		}

		done = append(done, types.CompletedPart{PartNumber: &number, ETag: out.ETag})
	}

	if _, err := m.direct.CompleteMultipartUpload(m.t.Context(), &s3.CompleteMultipartUploadInput{
		Bucket: &m.bucket, Key: &key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
	}); err != nil {
		m.t.Fatal(err)
	}
}

// verified runs the command and returns the fault of each object that fails,
// and the summary.
func (m *move) verified(config string, code int, args ...string) (map[string]string, faultTotals) {
	m.t.Helper()
	out := m.command(
		code,
		append([]string{"verify", "--config", config, "s3://bucket", "--format", "json"}, args...)...)
	faults := make(map[string]string)

	var totals faultTotals
	for line := range strings.Lines(out) {
		var row faulty
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			continue // the program's own line about its exit code
		}

		if row.Type == "summary" {
			if err := json.Unmarshal([]byte(line), &totals); err != nil {
				m.t.Fatal(err)
			}
			continue
		}

		if row.Error == "" {
			m.t.Errorf("no reason: %s", line)
		}
		faults[row.Key+row.Version] = string(row.Fault)
		for _, k := range row.Keys {
			faults[row.Key+row.Version] += " " + k.Name
		}
	}

	return faults, totals
}

func TestVerifyFindsEachTampering(t *testing.T) {
	const mib, part = 1 << 20, 5<<20 + 9216
	m := newMove(t)
	for i, size := range []int{0, 1, 1000, 65_496, 300_000} {
		m.put(fmt.Sprintf("good/%d", i), text(uint64(i), size))
	}
	m.upload("good/parts", []int32{1, 2}, 5*mib, 5*mib)
	m.put("other", text(99, 300_000))

	m.upload("other parts", []int32{1, 2}, 5*mib, 5*mib)
	whole, other := m.raw("good/4"), m.raw("other")
	parts, otherParts := m.raw("good/parts"), m.raw("other parts")
	p1, p2, end := parts.body[:part], parts.body[part:2*part], parts.body[2*part:]

	flip := func(body []byte, at int) []byte {
		body = bytes.Clone(body)
		body[at] ^= 1
		return body
	}

	changed := func(name, value string) map[string]string {
		metadata := maps.Clone(whole.metadata)
		metadata[name] = value
		return metadata
	}

	want := make(map[string]string)
	tamper := func(fault, key string, metadata map[string]string, parts ...[]byte) {
		t.Helper()
		m.putRaw("bad/"+key, metadata, parts...)
		want["bad/"+key] = fault
	}

	for what, at := range map[string]int{
		"first byte": 0, "salt": 20, "first segment": 50, "middle": 150_000, "last byte": len(whole.body) - 1,
	} {
		tamper("integrity old", "flip "+what, whole.metadata, flip(whole.body, at))
	}
	tamper("integrity old", "cut by one", whole.metadata, whole.body[:len(whole.body)-1])
	tamper("integrity old", "cut at a segment", whole.metadata, whole.body[:65_552])
	tamper("integrity old", "one byte more", whole.metadata, append(bytes.Clone(whole.body), 0))
	tamper("integrity old", "moved to another name", whole.metadata, whole.body)
	tamper("integrity old", "envelope of another", other.metadata, whole.body)

	tamper("integrity", "half an envelope", map[string]string{"cmek-v": "1"}, whole.body)
	tamper("key-unknown -", "key of nobody", changed("cmek-key", "local:0000000000000000"), whole.body)
	tamper("plaintext", "without envelope", nil, whole.body)
	tamper("integrity old", "parts moved", parts.metadata, p1, p2, end)
	tamper("integrity", "no parts", parts.metadata, whole.body)

	m.putRaw(
		"other parts",
		otherParts.metadata,
		otherParts.body[part:2*part],
		otherParts.body[:part],
		otherParts.body[2*part:],
	)

	want["other parts"] = "integrity old"
	m.upload("cut parts", []int32{1, 2}, 5*mib, 5*mib)
	cut := m.raw("cut parts")
	m.putRaw("cut parts", cut.metadata, cut.body[:part], cut.body[part:2*part])
	want["cut parts"] = "integrity old"
	m.upload("flipped fill", []int32{1, 2}, 5*mib, 5*mib)
	fill := m.raw("flipped fill")

	m.putRaw("flipped fill", fill.metadata, flip(fill.body, part-1)[:part], fill.body[part:2*part], fill.body[2*part:])
	want["flipped fill"] = "integrity old"
	m.put("swapped", text(55, 300_000))
	swapped := m.raw("swapped")
	m.putRaw("swapped", swapped.metadata, whole.body)
	want["swapped"] = "integrity old"
	m.put("flipped", text(56, 300_000))

	flipped := m.raw("flipped")
	m.putRaw("flipped", flipped.metadata, flip(flipped.body, len(flipped.body)-1))
	want["flipped"] = "integrity old"

	got, totals := m.verified(m.denying(), 1)
	if !maps.Equal(got, want) {
		for key := range want {
			if got[key] != want[key] {
				t.Errorf("%s: %q, not %q", key, got[key], want[key])
			}
		}

		for key := range got {
			if want[key] == "" {
				t.Errorf("%s: %q", key, got[key])
			}
		}
	}

	if totals.Verified != 7 || totals.Bytes != 1+1000+65_496+300_000+10*mib+300_000 ||
		totals.Failed != int64(len(want)) ||
		totals.Faults["key-unknown"] != 1 ||
		totals.Faults["plaintext"] != 1 {
		t.Errorf("%+v", totals)
	}

	if got, totals := m.verified(m.both, 1); got["bad/without envelope"] != "" || totals.Plaintext != 1 {
		t.Errorf("plaintext where it is allowed: %q, %+v", got["bad/without envelope"], totals)
	}
	m.command(0, "verify", "--config", m.both, "s3://bucket/good/")
}

// An error of a KMS or a store is not reported as damage.
func TestVerifyTellsKeysFromDamage(t *testing.T) {
	m := newMove(t)
	for i := range 3 {
		m.put(fmt.Sprintf("k%d", i), text(uint64(i), 100_000))
	}

	if got, totals := m.verified(m.config("unknown.yaml", m.store, "new", "new"), 1); got["k1"] != "key-unknown -" ||
		totals.Faults["key-unknown"] != 3 {
		t.Errorf("an unknown key: %v, %+v", got, totals)
	}
	m.command(0, "keys", "disable", m.keys["old"])

	if got, totals := m.verified(m.both, 1); got["k1"] != "key-revoked old" || totals.Faults["key-revoked"] != 3 {
		t.Errorf("a key that is disabled: %v, %+v", got, totals)
	}
	if err := os.Remove(m.keys["old"]); err != nil {
		t.Fatal(err)
	}

	if got, totals := m.verified(m.both, 1); strings.HasPrefix(got["k1"], "integrity") || totals.Failed != 3 ||
		totals.Faults["integrity"] > 0 {
		t.Errorf("a missing key: %v, %+v", got, totals)
	}
}

func TestVerifyWithAStoreThatAnswersSomethingElse(t *testing.T) {
	m := newMove(t)
	m.put("k", text(1, 300_000))
	var asked atomic.Int64
	hooked := m.hook(func(r *http.Request) {
		if r.Method == http.MethodGet && r.URL.Path == "/bucket/k" {
			asked.Add(1)
			r.Header.Set("Range", "bytes=0-99999") // answered 206 without being requested
		}
	})
	got, _ := m.verified(m.config("hooked.yaml", hooked, "old", "old"), 1)
	if got["k"] != "store old" || asked.Load() == 0 {
		t.Errorf("%v", got)
	}
}

func TestVerifyResumedAndVersions(t *testing.T) {
	m := newVersioned(t)
	for i := range 30 {
		m.put(fmt.Sprintf("k%02d", i), text(uint64(i), 1000))
	}
	good := m.raw("k03")
	m.putRaw("k03", good.metadata, good.body[:500])

	file := filepath.Join(m.dir, "state")
	if got, _ := m.verified(m.both, 1, "--state", file); got["k03"] == "" || len(got) != 1 {
		t.Errorf("%v", got)
	}
	if got, totals := m.verified(m.both, 1, "--state", file); got["k03"] == "" || totals.Verified != 0 {
		t.Errorf("a second time it reads what has failed: %v, %+v", got, totals)
	}

	m.putRaw("k03", good.metadata, good.body)
	if _, totals := m.verified(m.both, 0, "--state", file); totals.Verified != 1 {
		t.Errorf("%+v", totals)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the state is still there")
	}

	got, totals := m.verified(m.both, 1, "--versions")
	if len(got) != 1 || totals.Verified != 31 || !strings.HasPrefix(slices.Collect(maps.Keys(got))[0], "k03") {
		t.Errorf("versions: %v, %+v", got, totals)
	}
	m.command(2, "verify", "--config", m.both, "s3://bucket", "--versions", "--state", file)
	m.command(2, "verify", "--config", m.both, "s3://bucket", "--format", "xml")
}

func TestVerifyFormats(t *testing.T) {
	m := newMove(t)
	m.put("good", text(1, 10))
	m.put("=bad,\"\n", text(1, 10))
	bad := m.raw("=bad,\"\n")
	m.putRaw("=bad,\"\n", bad.metadata, bad.body[1:])

	table := m.command(1, "verify", "--config", m.both, "s3://bucket")
	if !strings.Contains(table, `FAILED  integrity`) || !strings.Contains(table, `"=bad,\"\n"`) ||
		!strings.Contains(table, "verified   1 objects, 10 bytes") ||
		!strings.Contains(table, "1 integrity") {
		t.Error(table)
	}

	var out, failure output
	if code := run(t.Context(), []string{
		"verify", "--config", m.both, "s3://bucket", "--format", "csv",
	}, &out, &failure); code != 1 {
		t.Errorf("exit code %d", code)
	}

	rows, err := csv.NewReader(strings.NewReader(out.String())).ReadAll()
	if err != nil || len(rows) != 2 || !slices.Equal(rows[0], faultColumns) || rows[1][0] != "'=bad,\"\n" ||
		rows[1][2] != "integrity" {
		t.Errorf("%q, %v", rows, err)
	}
}

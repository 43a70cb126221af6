package s3api_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// An upload needs one data key per replica, even with concurrent parts, and
// a read needs one Decrypt for each of them.
func TestKMSRequestsOfAnUpload(t *testing.T) {
	server := kmstest.StartTest(t)
	arn, err := server.CreateKey()
	if err != nil {
		t.Fatal(err)
	}
	a := newProxy(t, withKMS(server, arn))
	b := newProxy(t, withKMS(server, arn))

	b.bucket = a.bucket
	m := a.create("k")
	var wg sync.WaitGroup
	for i := range 8 {
		by := []*proxy{a, b}[i%2]
		text := randomText(5 * mib)
		wg.Go(func() {
			out, err := by.client.UploadPart(
				t.Context(),
				&s3.UploadPartInput{
					Bucket:     &a.bucket,
					Key:        &m.key,
					UploadId:   &m.id,
					PartNumber: new(int32(i + 1)),
					Body:       bytes.NewReader(text),
				},
			)
			if err != nil {
				t.Error(err)
				return
			}

			m.keep(partOf(i+1, out.ETag), text)
		})
	}

	wg.Wait()
	m.mustComplete()
	if calls := server.Calls(); calls["GenerateDataKey"] != 2 || calls["Decrypt"] != 0 {
		t.Errorf("the upload cost %v", calls)
	}
	a.keys.PurgeAll()

	for range 2 {
		if got := a.mustGet("k"); !bytes.Equal(got, m.text()) {
			t.Error("another text")
		}
	}

	if calls := server.Calls(); calls["Decrypt"] != 2 {
		t.Errorf("two reads cost %v", calls)
	}
}

// Revoking a key ends multipart uploads and downloads, and stored objects
// stay ciphertext.
func TestRevokedKeyOfAnUpload(t *testing.T) {
	p := newProxy(t)
	old := p.upload("old", []int{5 * mib, 5 * mib, 5 * mib})
	m := p.create("new")
	m.send(1, randomText(5*mib))

	out, err := p.client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &p.bucket, Key: &old.key})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()

	if _, err := io.ReadFull(out.Body, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(p.keyFile); err != nil {
		t.Fatal(err)
	}
	p.keys.PurgeAll()

	if rest, err := io.ReadAll(out.Body); err == nil || len(rest) > 14*mib {
		t.Errorf("%d bytes still came, %v", len(rest), err)
	}
	text := randomText(300_000)
	const want = "KMS.NotFoundException"

	path := "/" + p.bucket + "/new?partNumber=2&uploadId=" + m.id
	if a := p.send(request{method: "PUT", path: path, body: text}); a.Code != want {
		t.Errorf("UploadPart: %d %s", a.StatusCode, a.Code)
	}
	if _, err := m.complete(); code(err) != want { // the appended part needs the key
		t.Errorf("CompleteMultipartUpload: %v", err)
	}

	if _, err := p.client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{
		Bucket: &p.bucket, Key: new("x"),
	}); code(err) != want {
		t.Errorf("CreateMultipartUpload: %v", err)
	}
	if _, _, err := p.getRange("old", "bytes=6000000-6000100"); code(err) != want {
		t.Errorf("a range: %v", err)
	}

	if p.isStored("new") {
		t.Error("an object came of it")
	}
	if n := p.listed("old"); n != 15*mib { // sizes need no key
		t.Errorf("listed with %d bytes", n)
	}
}

// Parts of an unfinished upload are stored as ciphertext, and no name,
// header or answer has a checksum of the plaintext.
func TestPartsAtRest(t *testing.T) {
	p := newProxy(t)
	text := bytes.Repeat([]byte("a secret that must not be stored"), 200_000)
	m := p.create("k")
	m.send(1, text)
	m.send(2, text[:1000])
	found := 0

	for _, path := range filesBelow(t, store.Dir) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("cmekpart")) {
			found++
		}

		if bytes.Contains(b, text[:32]) {
			t.Errorf("%s has plaintext", path)
		}
	}

	if found < 2 {
		t.Errorf("%d parts found in the store's directory", found)
	}

	done := p.send(request{method: "POST", path: "/" + p.bucket + "/k?uploadId=" + m.id, body: m.document()})
	if done.StatusCode != http.StatusOK || strings.Contains(string(done.body), "<ChecksumCRC32>") ||
		!strings.Contains(string(done.body), "<Location>"+p.url+"/"+p.bucket+"/k</Location>") {
		t.Errorf("%d %s", done.StatusCode, done.body)
	}
}

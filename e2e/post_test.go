package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os/exec"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
)

// postForm is what a server gives to a browser: the URL of the upload and
// the form fields.
type postForm struct {
	URL    string            `json:"url"`
	Fields map[string]string `json:"fields"`
}

// signers sign forms for uploads to a bucket below a prefix, of up to 4 MiB
// each.
var signers = map[string]func(t *testing.T, e endpoint, bucket, prefix string) postForm{
	"minio-go": func(t *testing.T, e endpoint, bucket, prefix string) postForm {
		t.Helper()
		policy := minio.NewPostPolicy()
		for _, err := range []error{
			policy.SetBucket(bucket), policy.SetKeyStartsWith(prefix), policy.SetExpires(time.Now().Add(time.Hour)),
			policy.SetContentType("image/jpeg"), policy.SetContentLengthRange(0, 4<<20), policy.SetUserMetadata("from", "minio-go"),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		url, fields, err := newMinioGo(e).api.PresignedPostPolicy(t.Context(), policy)
		if err != nil {
			t.Fatal(err)
		}
		fields["key"] = prefix + "${filename}"
		return postForm{url.String(), fields}
	},
	"boto3": func(t *testing.T, e endpoint, bucket, prefix string) postForm {
		t.Helper()
		const script = `
import boto3, botocore.client, json, sys
endpoint, region, access, secret, bucket, prefix = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=endpoint, region_name=region, aws_access_key_id=access, aws_secret_access_key=secret,
                  config=botocore.client.Config(signature_version="s3v4"))
print(json.dumps(s3.generate_presigned_post(bucket, prefix + "${filename}", Fields={"Content-Type": "image/jpeg", "x-amz-meta-from": "boto3"},
    Conditions=[["starts-with", "$Content-Type", "image/"], ["content-length-range", 0, 4 << 20], {"x-amz-meta-from": "boto3"}])))
`
		out, err := exec.CommandContext(t.Context(), pythonCommand(), "-c", script, e.url, region, e.accessKey, e.secret, bucket, prefix).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var form postForm
		if err := json.Unmarshal(out, &form); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return form
	},
}

// TestPostForms uploads files as browsers do, with forms that SDKs have
// signed.
func TestPostForms(t *testing.T) {
	s := startStack(t)
	for _, e := range s.endpoints {
		judge := newGoSDK(e)
		bucket := "posts-" + e.name
		if err := judge.createBucket(bucket); err != nil {
			t.Fatal(err)
		}
		for name, sign := range signers {
			if !selected(name) {
				continue
			}
			form := sign(t, e, bucket, name+"/")
			for _, size := range []int{0, 1, 65_496, 1 << 20, 3 << 20} {
				file := fmt.Sprintf("%d.jpg", size)
				text := make([]byte, size)
				rand.Read(text)
				if status, answer := form.post(t, e, file, text); status != http.StatusNoContent {
					t.Fatalf("%s %s: %d bytes: %d %s", name, e.name, size, status, answer)
				}
				if got, err := judge.get(bucket, name+"/"+file); err != nil || !bytes.Equal(got, text) {
					t.Errorf("%s %s: %d of %d bytes come back, %v", name, e.name, len(got), size, err)
				}
			}
			if status, answer := form.post(t, e, "large.jpg", make([]byte, 5<<20)); status != http.StatusBadRequest {
				t.Errorf("%s %s: longer than the policy allows: %d %s", name, e.name, status, answer)
			}
			form.Fields["x-amz-meta-from"] = "somebody else"
			if status, answer := form.post(t, e, "other.jpg", []byte("x")); status != http.StatusForbidden {
				t.Errorf("%s %s: another field than was signed: %d %s", name, e.name, status, answer)
			}
		}
	}
	checkLogs(t, s)
}

func (f postForm) post(t *testing.T, e endpoint, file string, text []byte) (status int, answer string) {
	t.Helper()
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for name, value := range f.Fields {
		if err := w.WriteField(name, value); err != nil {
			t.Fatal(err)
		}
	}

	part, err := w.CreateFormFile("file", file)
	if err != nil {
		t.Fatal(err)
	}

	if _, err := part.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.URL, &body)
	if err != nil {
		t.Fatal(err)
	}

	r.Header.Set("Content-Type", w.FormDataContentType())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust(e), DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

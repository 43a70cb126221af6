package e2e

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// chosenScript uses boto3 with a chosen key, and partly with an encryption
// context, for single-PUT and multipart objects. The parts of one upload go
// to two proxies in turn. It prints the key of each object.
const chosenScript = `
import base64, boto3, io, json, os, sys
region, access, secret, bucket, ca = sys.argv[1:6]
clients = [boto3.client("s3", endpoint_url=url, region_name=region, aws_access_key_id=access, aws_secret_access_key=secret, verify=ca or None) for url in sys.argv[6:]]
s3 = clients[0]
chosen = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "other"}
context = {"SSEKMSEncryptionContext": base64.b64encode(b'{"tenant":"acme"}').decode()}
s3.put_object(Bucket=bucket, Key="whole", Body=b"text", **chosen, **context)
upload = s3.create_multipart_upload(Bucket=bucket, Key="parts", **chosen, **context)["UploadId"]
text = os.urandom(17 << 20)
parts = []
for i in range(4):
    etag = clients[i % 2].upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=i + 1, Body=text[i * (5 << 20):(i + 1) * (5 << 20)])["ETag"]
    parts.append({"PartNumber": i + 1, "ETag": etag})
clients[1].complete_multipart_upload(Bucket=bucket, Key="parts", UploadId=upload, MultipartUpload={"Parts": parts})
s3.upload_fileobj(io.BytesIO(text), bucket, "managed", ExtraArgs=chosen)
s3.put_object(Bucket=bucket, Key="rules", Body=b"text")
for key in ("parts", "managed"):
    assert clients[1].get_object(Bucket=bucket, Key=key)["Body"].read() == text
print(json.dumps({key: s3.head_object(Bucket=bucket, Key=key)["SSEKMSKeyId"] for key in ("whole", "parts", "managed", "rules")}))
`

// TestChosenKeys has SDKs and the command line request a key other than the
// one that the rules name.
func TestChosenKeys(t *testing.T) {
	s := startStack(t)
	if !s.proxied {
		t.Skip("the store has no such key")
	}

	e := s.endpoints[1] // TLS; the boto3 script also uses the other proxy
	const bucket = "chosen"
	if err := newGoSDK(e).createBucket(bucket); err != nil {
		t.Fatal(err)
	}

	if selected("boto3") {
		out, err := exec.CommandContext(t.Context(), pythonCommand(), "-c", chosenScript, region, e.accessKey, e.secret, bucket, e.ca, e.url, s.endpoints[0].url).CombinedOutput()
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		var keys map[string]string
		if err != nil || json.Unmarshal([]byte(lines[len(lines)-1]), &keys) != nil {
			t.Fatalf("boto3: %v: %s", err, out)
		}
		if keys["whole"] == "" || keys["parts"] != keys["whole"] || keys["managed"] != keys["whole"] || keys["rules"] == keys["whole"] {
			t.Errorf("boto3: the objects are under %v", keys)
		}
	}

	if selected("aws-cli") {
		dir := t.TempDir()
		text := make([]byte, 9<<20) // large enough for a multipart upload
		rand.Read(text)
		file := filepath.Join(dir, "text")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, object := newAWSCLI(e, dir), "s3://"+bucket+"/aws-cli"
		c.mustRoundTrip(t, file, object, []string{"--sse", "aws:kms", "--sse-kms-key-id", "other"}, nil)
		if _, err := c.run("s3", "cp", "--no-progress", "--sse", "aws:kms", "--sse-kms-key-id", "nobody", file, object); err == nil {
			t.Error("an unknown key was taken")
		}
	}
	checkLogs(t, s)
}

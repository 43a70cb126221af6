package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// customerScript uses boto3 with a customer key (SSE-C): a single-PUT
// object, a multipart object, a copy to another key and one without a key,
// and requests that must be rejected. It prints the code of each rejection.
const customerScript = `
import boto3, botocore.exceptions, io, json, os, sys
endpoint, region, access, secret, bucket, ca = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=endpoint, region_name=region, aws_access_key_id=access, aws_secret_access_key=secret, verify=ca or None)
mine, other = bytes([1]) * 32, bytes([2]) * 32
key = lambda k: {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": k}
source = {"CopySourceSSECustomerAlgorithm": "AES256", "CopySourceSSECustomerKey": mine}
large = os.urandom(20 << 20)
s3.put_object(Bucket=bucket, Key="boto3/small", Body=b"text", **key(mine))
s3.upload_fileobj(io.BytesIO(large), bucket, "boto3/large", ExtraArgs=key(mine))
assert s3.get_object(Bucket=bucket, Key="boto3/small", **key(mine))["Body"].read() == b"text"
back = io.BytesIO()
s3.download_fileobj(bucket, "boto3/large", back, ExtraArgs=key(mine))
assert back.getvalue() == large
s3.copy_object(Bucket=bucket, Key="boto3/copy", CopySource={"Bucket": bucket, "Key": "boto3/small"}, **source, **key(other))
s3.copy_object(Bucket=bucket, Key="boto3/kms", CopySource={"Bucket": bucket, "Key": "boto3/large"}, **source)
assert s3.get_object(Bucket=bucket, Key="boto3/copy", **key(other))["Body"].read() == b"text"
assert s3.get_object(Bucket=bucket, Key="boto3/kms")["Body"].read() == large
refused = {}
for name, object, extra in (("none", "boto3/small", {}), ("other", "boto3/small", key(other)), ("none, in parts", "boto3/large", {}), ("other, in parts", "boto3/large", key(other)), ("not applicable", "boto3/kms", key(mine))):
    try:
        s3.get_object(Bucket=bucket, Key=object, **extra)["Body"].read()
    except botocore.exceptions.ClientError as e:
        refused[name] = e.response["Error"]["Code"]
print(json.dumps(refused))
`

// TestCustomerKeys sends customer keys (SSE-C) with SDKs and the command
// line.
func TestCustomerKeys(t *testing.T) {
	s := startStack(t)
	for _, e := range s.endpoints {
		bucket := "customers-" + e.name
		if err := newGoSDK(e).createBucket(bucket); err != nil {
			t.Fatal(err)
		}
		if selected("boto3") {
			out, err := exec.CommandContext(t.Context(), pythonCommand(), "-c", customerScript, e.url, region, e.accessKey, e.secret, bucket, e.ca).CombinedOutput()
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			var refused map[string]string
			if err != nil || json.Unmarshal([]byte(lines[len(lines)-1]), &refused) != nil {
				t.Fatalf("%s: %v: %s", e.name, err, out)
			}
			for name, want := range map[string]string{"none": "InvalidRequest", "other": "AccessDenied", "none, in parts": "InvalidRequest", "other, in parts": "AccessDenied", "not applicable": "InvalidRequest"} {
				if refused[name] != want {
					t.Errorf("%s: boto3, key %s: %s, want %s", e.name, name, refused[name], want)
				}
			}
		}
		if selected("aws-cli") {
			awsWithCustomerKey(t, e, bucket)
		}
	}
	checkLogs(t, s)
}

func awsWithCustomerKey(t *testing.T, e endpoint, bucket string) {
	t.Helper()
	dir := t.TempDir()
	text := make([]byte, 9<<20) // large enough for a multipart upload
	rand.Read(text)
	for name, data := range map[string][]byte{"key": bytes.Repeat([]byte{3}, 32), "other": bytes.Repeat([]byte{4}, 32), "text": text} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	c := newAWSCLI(e, dir)
	with := func(key string) []string {
		return []string{"--sse-c", "AES256", "--sse-c-key", "fileb://" + filepath.Join(dir, key)}
	}

	object, back := "s3://"+bucket+"/aws-cli", filepath.Join(dir, "back")
	c.mustRoundTrip(t, filepath.Join(dir, "text"), object, with("key"), with("key"))
	if _, err := c.run(append([]string{"s3", "cp", "--no-progress", object, back}, with("other")...)...); err == nil {
		t.Errorf("%s: read with another key", e.name)
	}

	if _, err := c.run("s3", "cp", "--no-progress", object, back); err == nil {
		t.Errorf("%s: read without a key", e.name)
	}
}

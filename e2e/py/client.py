"""The checks of checks_test.go with boto3. Prints one line of JSON per check; see runScript in main_test.go.

Credentials and the trusted certificate are in the environment. The only argument is the manifest.
"""

import base64
import datetime
import hashlib
import json
import os
import secrets
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib

import boto3
from botocore.client import Config
from botocore.exceptions import ClientError, HTTPClientError, ParamValidationError, SSLError

with open(sys.argv[1], encoding="utf-8") as f:
    M = json.load(f)
BUCKET = M["bucket"]
SMALL = M["small_text"].encode()


def client(access_key=None, secret=None, config=None):
    """Returns a client with default settings. boto3 uses path style by default if the endpoint is an IP address."""
    return boto3.client(
        "s3",
        endpoint_url=M["endpoint"],
        region_name=M["region"],
        aws_access_key_id=access_key,
        aws_secret_access_key=secret,
        config=config,
    )


s3 = client()

# If the server leaves a connection in a bad state, the client retries after
# a long wait.
retried = []


def count_retries(parsed, model, **_):
    # Over TLS, the store itself may close the connection on a PUT that it rejects, without a response.
    if M["proxied"] and parsed["ResponseMetadata"].get("RetryAttempts"):
        retried.append(model.name)


s3.meta.events.register("after-call.s3", count_retries)

# By default, the client retries BadDigest several times, with long pauses.
# Where BadDigest is the expected answer, one attempt is enough.
once = client(config=Config(retries={"max_attempts": 0}))


class Check:
    """Collects failures, so that one does not hide the next."""

    def __init__(self):
        self.failures = []

    def same(self, what, got, want):
        if got != want:
            text = f"{what}: got {len(got)} bytes, not {len(want)}, or others" if isinstance(want, bytes) else f"{what}: {got!r}, not {want!r}"
            self.failures.append(text[:600])

    def refused(self, what, status, codes, call, **args):
        try:
            call(**args)
        except ClientError as e:
            got = (e.response["ResponseMetadata"]["HTTPStatusCode"], e.response["Error"]["Code"])
            if got[0] != status or got[1] not in codes + [str(status)]:
                self.failures.append(f"{what}: {got}, not {status} {codes}: {e}"[:600])
            return
        except (HTTPClientError, SSLError):
            # Over TLS, the store itself may close the connection on a PUT that it rejects, without a response.
            if M["proxied"]:
                raise
            return
        self.failures.append(f"{what}: was not refused")


def data(body):
    with open(body["file"], "rb") as f:
        return f.read()


def body(name):
    return next(b for b in M["bodies"] if b["name"] == name)


def get(key, **args):
    return s3.get_object(Bucket=BUCKET, Key=key, **args)["Body"].read()


def put(key, content, **args):
    return s3.put_object(Bucket=BUCKET, Key=key, Body=content, **args)


def put_once(key, content, **args):
    return once.put_object(Bucket=BUCKET, Key=key, Body=content, **args)


def bucket(c):
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": M["region"]})
    s3.head_bucket(Bucket=BUCKET)
    c.same("in the list of buckets", BUCKET in [b["Name"] for b in s3.list_buckets()["Buckets"]], True)
    c.same("objects in a new bucket", s3.list_objects_v2(Bucket=BUCKET)["KeyCount"], 0)
    c.refused("listing no bucket", 404, ["NoSuchBucket"], s3.list_objects_v2, Bucket=BUCKET + "-none")
    c.refused("head of no bucket", 404, ["404"], s3.head_bucket, Bucket=BUCKET + "-none")


def round_trip(c):
    for b in M["bodies"]:
        key = "bodies/" + b["name"]
        with open(b["file"], "rb") as f:
            answer = put(key, f)
        # Most stores return no size here. If one does, it must not be the
        # size of the ciphertext.
        c.same(b["name"] + ", Size in the answer to PUT", answer.get("Size", b["size"]), b["size"])
        c.same(b["name"], get(key), data(b))
        # Most programs use the transfer manager, which reads and writes
        # files.
        s3.upload_file(b["file"], BUCKET, "transfer/" + b["name"])
        # Not in the folder of the bodies: another client may be uploading
        # all of it.
        back = os.path.join(tempfile.gettempdir(), "boto3-" + BUCKET + "-" + secrets.token_hex(8))
        s3.download_file(BUCKET, "transfer/" + b["name"], back)
        with open(back, "rb") as f:
            c.same(b["name"] + " by transfer manager", f.read(), data(b))
        os.remove(back)


def sizes(c):
    want = {"bodies/" + b["name"]: b["size"] for b in M["bodies"]}
    listed = s3.list_objects_v2(Bucket=BUCKET, Prefix="bodies/")["Contents"]
    c.same("listed", {o["Key"]: o["Size"] for o in listed}, want)
    c.same("listed, version 1", {o["Key"]: o["Size"] for o in s3.list_objects(Bucket=BUCKET, Prefix="bodies/")["Contents"]}, want)
    for o in listed:
        head = s3.head_object(Bucket=BUCKET, Key=o["Key"])
        c.same("HEAD of " + o["Key"], head["ContentLength"], want[o["Key"]])
        c.same("ETag of " + o["Key"], head["ETag"], o["ETag"])
        c.same("LastModified of " + o["Key"], head["LastModified"].replace(microsecond=0), o["LastModified"].replace(microsecond=0))


def ranges(c):
    b = body("random-1048576")
    want, key = data(b), "bodies/" + b["name"]
    for spec, part in {
        "0-0": want[:1],
        "65495-65496": want[65495:65497],
        "65400-131100": want[65400:131101],
        "131032-131032": want[131032:131033],
        "1048575-1048575": want[1048575:],
        "1048000-": want[1048000:],
        "-1": want[-1:],
        "-70000": want[-70000:],
        "1048000-9999999": want[1048000:],
        "-9999999": want,
    }.items():
        answer = s3.get_object(Bucket=BUCKET, Key=key, Range="bytes=" + spec)
        c.same(spec, answer["Body"].read(), part)
        c.same(spec + ", status", answer["ResponseMetadata"]["HTTPStatusCode"], 206)
        c.same(spec + ", Content-Range ends in", answer["ContentRange"].split("/")[1], str(len(want)))
    for spec in ["1048576-", "2000000-3000000"]:
        c.refused(spec, 416, ["InvalidRange"], s3.get_object, Bucket=BUCKET, Key=key, Range="bytes=" + spec)
    c.refused("a range of nothing", 416, ["InvalidRange"], s3.get_object, Bucket=BUCKET, Key="bodies/random-0", Range="bytes=0-")


def listing(c):
    everything, top, prefixes = {}, {}, []
    for i in range(23):
        key = f"list/file-{i:02d}"
        if i % 3:
            prefixes.append(f"list/dir-{i:02d}/")
            key = prefixes[-1] + "file"
        else:
            top[key] = i
        everything[key] = i
        put(key, SMALL[:i])
    for name in ["list_objects_v2", "list_objects"]:
        pages = list(s3.get_paginator(name).paginate(Bucket=BUCKET, Prefix="list/", PaginationConfig={"PageSize": 7}))
        c.same(name + ", pages", len(pages), 4)
        c.same(name, {o["Key"]: o["Size"] for p in pages for o in p.get("Contents", [])}, everything)
        pages = list(s3.get_paginator(name).paginate(Bucket=BUCKET, Prefix="list/", Delimiter="/", PaginationConfig={"PageSize": 7}))
        c.same(name + " with delimiter", {o["Key"]: o["Size"] for p in pages for o in p.get("Contents", [])}, top)
        c.same(name + ", prefixes", [q["Prefix"] for p in pages for q in p.get("CommonPrefixes", [])], prefixes)
    after = s3.list_objects_v2(Bucket=BUCKET, Prefix="list/", StartAfter="list/file-15")
    c.same("start-after", [o["Key"] for o in after["Contents"]], ["list/file-18", "list/file-21"])
    c.same("max-keys 0", s3.list_objects_v2(Bucket=BUCKET, MaxKeys=0)["KeyCount"], 0)


def odd_keys(c):
    for key in M["keys"]:
        content = SMALL + key.encode()
        put(key, content)
        c.same(key, get(key), content)
        c.same("HEAD of " + key, s3.head_object(Bucket=BUCKET, Key=key)["ContentLength"], len(content))
    listed = {o["Key"]: o["Size"] for o in s3.list_objects_v2(Bucket=BUCKET, Prefix="odd/")["Contents"]}
    c.same("listed", listed, {key: len(SMALL + key.encode()) for key in M["keys"]})


def fetch(c, what, url, status, method="GET", content=None, want=None):
    """Sends a request to a URL as a program without an SDK does."""
    context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE")) if url.startswith("https:") else None
    # By default, urllib sends the Content-Type of a form with a body. The
    # signature does not cover it, so it has no effect.
    request = urllib.request.Request(url, method=method, data=content, headers={"Content-Type": "text/plain"} if content else {})
    try:
        with urllib.request.urlopen(request, context=context) as answer:
            got, text = answer.status, answer.read()
    except urllib.error.HTTPError as e:
        got, text = e.code, e.read()
    c.same(f"{what}: {text[:300] if got != status else ''}", got, status)
    if want is not None and got == status:
        c.same(what, text, want)


def presigned(c):
    signer = s3
    if "X-Amz-Signature" not in s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "x"}):
        # Older versions presign with Signature Version 2 by default, which
        # S3 rejects for new buckets.
        signer = client(config=Config(signature_version="s3v4"))

    def url(operation, key, expires=3600):
        return signer.generate_presigned_url(operation, Params={"Bucket": BUCKET, "Key": key}, ExpiresIn=expires)

    b = body("random-65497")
    link = url("get_object", "bodies/" + b["name"])
    fetch(c, "GET", link, 200, want=data(b))
    fetch(c, "HEAD", url("head_object", "bodies/" + b["name"]), 200, method="HEAD")
    flipped = "1" if link.split("X-Amz-Signature=")[1][0] == "0" else "0"
    before, after = link.split("X-Amz-Signature=")
    fetch(c, "another signature", before + "X-Amz-Signature=" + flipped + after[1:], 403)
    fetch(c, "another key", link.replace("-65497", "-65496"), 403)
    fetch(c, "another expiry", link.replace("X-Amz-Expires=3600", "X-Amz-Expires=7200"), 403)
    fetch(c, "another method", link, 403, method="DELETE")
    fetch(c, "PUT", url("put_object", "presigned"), 200, method="PUT", content=data(b))
    c.same("stored by URL", get("presigned"), data(b))
    brief = url("get_object", "bodies/" + b["name"], 1)
    time.sleep(2.5)
    fetch(c, "expired", brief, 403)


HEADERS = {
    "ContentType": "text/x-e2e",
    "CacheControl": "max-age=60, private",
    "ContentDisposition": 'attachment; filename="a b.txt"',
    "ContentEncoding": "gzip",
    "ContentLanguage": "de-AT",
    "Metadata": {"color": "dark blue", "shape-of-it": "a=b;c"},
}


def metadata(c):
    put("metadata", SMALL, **HEADERS)
    for what, answer in [
        ("HEAD", s3.head_object(Bucket=BUCKET, Key="metadata")),
        ("GET", s3.get_object(Bucket=BUCKET, Key="metadata")),
    ]:
        for name, value in HEADERS.items():
            got = answer.get(name)
            if not M["proxied"] and name == "ContentEncoding":
                continue  # the store itself returns aws-chunked
            c.same(f"{what}, {name}", got, value)
        c.same(f"{what}, headers of the proxy's own", [h for h in answer["ResponseMetadata"]["HTTPHeaders"] if "cmek" in h], [])
    changed = s3.get_object(Bucket=BUCKET, Key="metadata", ResponseContentType="text/plain", ResponseCacheControl="no-store")
    c.same("response-content-type", changed["ContentType"], "text/plain")
    c.same("response-cache-control", changed["CacheControl"], "no-store")


SUMS = {
    "CRC32": lambda d: zlib.crc32(d).to_bytes(4, "big"),
    "SHA1": lambda d: hashlib.sha1(d).digest(),
    "SHA256": lambda d: hashlib.sha256(d).digest(),
}


def b64(digest):
    return base64.b64encode(digest).decode()


def checksums(c):
    for name in ["random-0", "random-65497", "random-1048576"]:
        content = data(body(name))
        c.same(name + " by default", get("bodies/" + name, ChecksumMode="ENABLED"), content)
        for algorithm, digest in SUMS.items():
            key, field = f"checksums/{algorithm}-{name}", "Checksum" + algorithm
            answer = put(key, content, ChecksumAlgorithm=algorithm)
            c.same(f"{algorithm} of {name}, PUT", answer.get(field), b64(digest(content)))
            answer = s3.get_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
            c.same(f"{algorithm} of {name}", answer["Body"].read(), content)
            c.same(f"{algorithm} of {name}, GET", answer.get(field), b64(digest(content)))
            answer = s3.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
            c.same(f"{algorithm} of {name}, HEAD", answer.get(field), b64(digest(content)))
            part = s3.get_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED", Range="bytes=0-") if content else None
            if part:
                c.same(f"{algorithm} of {name}, whole as a range", part["Body"].read(), content)
    for algorithm, digest in SUMS.items():
        key = "checksums/wrong-" + algorithm
        args = {"Checksum" + algorithm: b64(digest(b"something else"))}
        c.refused("a wrong " + algorithm, 400, ["BadDigest"], put_once, key=key, content=SMALL, **args)
        c.refused("after a wrong " + algorithm, 404, ["404"], s3.head_object, Bucket=BUCKET, Key=key)


def content_md5(c):
    content = data(body("random-65497"))
    put("md5", content, ContentMD5=b64(hashlib.md5(content).digest()))
    wrong = b64(hashlib.md5(b"something else").digest())
    for key in ["md5", "md5-new"]:
        c.refused("a wrong Content-MD5", 400, ["BadDigest"], put_once, key=key, content=SMALL, ContentMD5=wrong)
    c.refused("no Content-MD5", 400, ["InvalidDigest"], put_once, key="md5-new", content=SMALL, ContentMD5="bm8gZGlnZXN0")
    c.refused("after that", 404, ["404"], s3.head_object, Bucket=BUCKET, Key="md5-new")
    c.same("what a refused PUT would have replaced", get("md5"), content)


def conditions(c):
    etag = put("conditions", SMALL)["ETag"]
    head = s3.head_object(Bucket=BUCKET, Key="conditions")
    c.same("the ETag of PUT and HEAD", head["ETag"], etag)
    other = '"0123456789abcdef0123456789abcdef"'
    c.same("If-Match", get("conditions", IfMatch=etag), SMALL)
    c.same("If-None-Match", get("conditions", IfNoneMatch=other), SMALL)
    c.refused("If-None-Match", 304, ["304"], get, key="conditions", IfNoneMatch=etag)
    c.refused("If-Match", 412, ["PreconditionFailed"], get, key="conditions", IfMatch=other)
    before = head["LastModified"] - datetime.timedelta(days=1)
    c.same("If-Modified-Since", get("conditions", IfModifiedSince=before), SMALL)
    c.refused("If-Unmodified-Since", 412, ["PreconditionFailed"], get, key="conditions", IfUnmodifiedSince=before)
    c.refused("HEAD, If-Match", 412, ["412"], s3.head_object, Bucket=BUCKET, Key="conditions", IfMatch=other)
    c.refused("HEAD, If-None-Match", 304, ["304"], s3.head_object, Bucket=BUCKET, Key="conditions", IfNoneMatch=etag)
    try:
        c.refused("PUT, If-None-Match *", 412, ["PreconditionFailed"], put, key="conditions", content=b"x", IfNoneMatch="*")
        put("conditions-new", SMALL, IfNoneMatch="*")
        c.refused("PUT, If-Match", 412, ["PreconditionFailed"], put, key="conditions", content=b"x", IfMatch=other)
        c.same("after refused PUTs", get("conditions"), SMALL)
        if M["put_if_match"]:
            put("conditions", b"replaced", IfMatch=etag)
            c.same("after PUT, If-Match", get("conditions"), b"replaced")
    except ParamValidationError:
        pass  # an older version does not support conditional writes


def multipart(c):
    """Uploads and downloads with the transfer manager and its defaults: parts of 8 MiB, ten threads."""
    large = M["large"]
    s3.upload_file(large["file"], BUCKET, "large")
    head = s3.head_object(Bucket=BUCKET, Key="large")
    c.same("size", head["ContentLength"], large["size"])
    c.same("parts in the ETag", head["ETag"].rpartition("-")[2], '3"')
    back = os.path.join(tempfile.gettempdir(), "boto3-" + BUCKET + "-" + secrets.token_hex(8))
    s3.download_file(BUCKET, "large", back)
    with open(back, "rb") as f:
        c.same("large, by threads", f.read(), data(large))
    os.remove(back)
    listed = s3.list_objects_v2(Bucket=BUCKET, Prefix="large")["Contents"][0]
    c.same("listed", (listed["Size"], listed["ETag"]), (large["size"], head["ETag"]))


def copy(c):
    """Copies with CopyObject, and with the managed copy, which uses multipart uploads for large objects."""
    for key, want in {"bodies/random-65497": data(body("random-65497")), "large": data(M["large"])}.items():
        source = {"Bucket": BUCKET, "Key": key}
        s3.copy_object(Bucket=BUCKET, Key="copies/one-" + key, CopySource=source)
        c.same("CopyObject of " + key, get("copies/one-" + key), want)
        s3.copy(source, BUCKET, "copies/managed-" + key)
        c.same("managed copy of " + key, get("copies/managed-" + key), want)
    put("copies/metadata", SMALL, Metadata={"color": "blue"}, ContentType="text/x-e2e")
    same = {"Bucket": BUCKET, "Key": "copies/metadata"}
    s3.copy_object(**same, CopySource=same, MetadataDirective="REPLACE", Metadata={"color": "red"}, ContentType="text/x-other")
    head = s3.head_object(**same)
    c.same("replaced metadata", (head["Metadata"], head["ContentType"]), ({"color": "red"}, "text/x-other"))
    c.same("the rest of it", get("copies/metadata"), SMALL)


def tags(c):
    want = [{"Key": "project", "Value": "e2e"}, {"Key": "state", "Value": "a+b = c/d"}]
    s3.put_object_tagging(Bucket=BUCKET, Key="bodies/random-1", Tagging={"TagSet": want})
    got = s3.get_object_tagging(Bucket=BUCKET, Key="bodies/random-1")["TagSet"]
    c.same("tags", sorted(got, key=lambda tag: tag["Key"]), want)
    put("tagged", SMALL, Tagging="project=e2e&state=new")
    got = s3.get_object_tagging(Bucket=BUCKET, Key="tagged")["TagSet"]
    c.same("tags of PutObject", {tag["Key"]: tag["Value"] for tag in got}, {"project": "e2e", "state": "new"})
    s3.delete_object_tagging(Bucket=BUCKET, Key="tagged")
    c.same("after DeleteObjectTagging", s3.get_object_tagging(Bucket=BUCKET, Key="tagged")["TagSet"], [])


def delete(c):
    keys = [f"delete/{i}+ü&<x>" for i in range(5)]
    for key in keys:
        put(key, SMALL)
    s3.delete_object(Bucket=BUCKET, Key=keys[0])
    s3.delete_object(Bucket=BUCKET, Key=keys[0])  # not an error in S3
    c.refused("GET", 404, ["NoSuchKey"], get, key=keys[0])
    c.refused("HEAD", 404, ["404"], s3.head_object, Bucket=BUCKET, Key=keys[0])
    answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": k} for k in keys[1:]]})
    c.same("deleted", sorted(d["Key"] for d in answer.get("Deleted", [])), keys[1:])
    c.same("errors", answer.get("Errors", []), [])
    put(keys[0], SMALL)
    answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": keys[0]}], "Quiet": True})
    c.same("errors, quiet", answer.get("Errors", []), [])
    c.same("left", s3.list_objects_v2(Bucket=BUCKET, Prefix="delete/")["KeyCount"], 0)
    c.refused("bucket that is not empty", 409, ["BucketNotEmpty"], s3.delete_bucket, Bucket=BUCKET)
    s3.create_bucket(Bucket=BUCKET + "-gone", CreateBucketConfiguration={"LocationConstraint": M["region"]})
    s3.delete_bucket(Bucket=BUCKET + "-gone")


def credentials(c):
    wrong = client(os.environ["AWS_ACCESS_KEY_ID"], secrets.token_urlsafe(30))
    unknown = client("AKUNKNOWN" + secrets.token_hex(5), os.environ["AWS_SECRET_ACCESS_KEY"])
    for code, stranger in [("SignatureDoesNotMatch", wrong), ("InvalidAccessKeyId", unknown)]:
        if code == "InvalidAccessKeyId" and not M["proxied"]:
            continue  # the store itself answers 404
        c.refused("list", 403, [code], stranger.list_objects_v2, Bucket=BUCKET)
        c.refused("GET", 403, [code], stranger.get_object, Bucket=BUCKET, Key="bodies/random-1")
        c.refused("PUT", 403, [code], stranger.put_object, Bucket=BUCKET, Key="stranger", Body=SMALL)
    c.refused("what a stranger stored", 404, ["404"], s3.head_object, Bucket=BUCKET, Key="stranger")


def main():
    for name, check in [
        ("bucket", bucket),
        ("round trip", round_trip),
        ("sizes", sizes),
        ("ranges", ranges),
        ("listing", listing),
        ("odd keys", odd_keys),
        ("presigned", presigned),
        ("metadata", metadata),
        ("checksums", checksums),
        ("content-md5", content_md5),
        ("conditions", conditions),
        ("multipart", multipart),
        ("copy", copy),
        ("tags", tags),
        ("delete", delete),
        ("credentials", credentials),
    ]:
        c, status = Check(), "ok"
        try:
            check(c)
        except Exception as e:  # any failure belongs in the table
            c.failures.append(f"{type(e).__name__}: {e}"[:800])
        if retried:
            c.failures.append("sent more than once: " + ", ".join(retried))
            retried.clear()
        if c.failures:
            status = "fail"
        print(json.dumps({"check": name, "status": status, "detail": "\n".join(c.failures)}), flush=True)


main()

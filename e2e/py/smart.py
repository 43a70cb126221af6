"""smart_open: streams to and from S3. Prints one line of JSON per check; see runScript in main_test.go."""

import json
import os
import sys

import boto3
import smart_open

M = json.load(open(sys.argv[1]))
at = f"s3://{M['bucket']}/"
client = boto3.client("s3", endpoint_url=M["endpoint"], region_name=M["region"])
params = {"client": client}
failures = []


def same(what, got, want):
    if got != want:
        failures.append(f"{what}: {str(got)[:200]}, not {str(want)[:200]}")


def data(body):
    with open(body["file"], "rb") as f:
        return f.read()


def body(name):
    return next(b for b in M["bodies"] if b["name"] == name)


def write(key, content, **more):
    with smart_open.open(at + key, "wb", transport_params=params, **more) as f:
        for i in range(0, len(content), 100_000):
            f.write(content[i:i + 100_000])


def read(key, **more):
    with smart_open.open(at + key, "rb", transport_params=params, **more) as f:
        return f.read()


def round_trip():
    for b in M["bodies"]:
        write("bodies/" + b["name"], data(b))
        same(b["name"], read("bodies/" + b["name"]), data(b))
    text = data(body("text-65497"))
    write("text.gz", text)  # compressed, because of the name
    same("decompressed", read("text.gz"), text)
    raw = client.get_object(Bucket=M["bucket"], Key="text.gz")["Body"].read()
    same("gzip's header", raw[:2], b"\x1f\x8b")
    with smart_open.open(at + "text.gz", transport_params=params) as f:
        same("lines", list(f), text.decode().splitlines(keepends=True))


def multipart():  # of parts of 50 MiB, so more than one
    content = data(M["large"]) * 4
    write("large", content)
    same("large", read("large") == content, True)


def ranges():
    content = data(M["large"]) * 4
    with smart_open.open(at + "large", "rb", transport_params=params) as f:
        for start in [70_000_000, 0, 65_495, 52_428_799, len(content) - 1]:
            f.seek(start)
            same(f"100,000 bytes from {start}", f.read(100_000) == content[start:start + 100_000], True)
        f.seek(-5, 2)
        same("the end", f.read(), content[-5:])


def listing():
    listed = {o["Key"]: o["Size"] for o in client.list_objects_v2(Bucket=M["bucket"], Prefix="bodies/")["Contents"]}
    same("listed", listed, {"bodies/" + b["name"]: b["size"] for b in M["bodies"]})


def delete():
    client.delete_object(Bucket=M["bucket"], Key="text.gz")
    try:
        read("text.gz")
        failures.append("read after its deletion")
    except OSError:
        pass
    # An upload that fails in the middle must leave nothing.
    try:
        with smart_open.open(at + "failed", "wb", transport_params=params) as f:
            f.write(os.urandom(100))
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    same("what a failed program left", client.list_objects_v2(Bucket=M["bucket"], Prefix="failed")["KeyCount"], 0)


for name, check in [("round trip", round_trip), ("multipart", multipart), ("ranges", ranges), ("listing", listing), ("delete", delete)]:
    failures.clear()
    try:
        check()
    except Exception as e:
        failures.append(f"{type(e).__name__}: {e}"[:800])
    print(json.dumps({"check": name, "status": "fail" if failures else "ok", "detail": "\n".join(failures)}), flush=True)

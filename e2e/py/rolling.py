"""Reads and writes with boto3, without retries, until standard input ends: rolling.py ENDPOINT REGION BUCKET NAME.

Prints a line of JSON for each request.
"""

import json
import os
import random
import sys
import threading
import time

import boto3
from botocore.config import Config

endpoint, region, bucket, name = sys.argv[1:]
config = Config(retries={"total_max_attempts": 1, "mode": "standard"}, max_pool_connections=20)
s3 = boto3.client("s3", endpoint_url=endpoint, region_name=region, config=config)
body = os.urandom(6 << 20)
ended = threading.Event()
output = threading.Lock()


def step(doing, call):
    """Makes a request, and reports how it ended."""
    error, result = "", None
    try:
        result = call()
    except Exception as e:  # whatever it is, the request failed
        error = f"{type(e).__name__}: {e} {e.__cause__ or e.__context__ or ''}"
    if error and ended.wait(0.1):
        return None
    with output:
        print(json.dumps({"doing": doing, "error": error}), flush=True)
    return result


def put(key, size):
    return s3.put_object(Bucket=bucket, Key=key, Body=body[:size])


def get(key, size):
    got = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    if got != body[:size]:
        raise ValueError(f"read {len(got)} bytes, which are not the {size} written")


def multipart(key):
    upload = step("create", lambda: s3.create_multipart_upload(Bucket=bucket, Key=key))
    if upload is None:
        return
    target = {"Bucket": bucket, "Key": key, "UploadId": upload["UploadId"]}
    parts = []
    for number, data in enumerate((body[:5 << 20], body[5 << 20:]), 1):
        part = step("part", lambda: s3.upload_part(PartNumber=number, Body=data, **target))
        if part is None:
            return
        parts.append({"PartNumber": number, "ETag": part["ETag"]})
    step("complete", lambda: s3.complete_multipart_upload(MultipartUpload={"Parts": parts}, **target))
    step("GET multipart", lambda: get(key, len(body)))


def work(number, pauses):
    key = f"boto3-{name}-{number}"
    while not ended.is_set():
        for size in (1000, 3 << 20) if number == 0 else (1000, 2000):
            if step(f"PUT {size}", lambda: put(key, size)) is None or ended.wait(random.uniform(0, pauses)):
                break
            step(f"GET {size}", lambda: get(key, size))
            ended.wait(random.uniform(0, pauses))
        if number == 0:
            multipart(key)


threads = [threading.Thread(target=work, args=(i, pauses)) for i, pauses in enumerate((0.1, 0, 0.3) + 10 * (3,))]
for thread in threads:
    thread.start()
sys.stdin.read()
ended.set()
for thread in threads:
    thread.join()

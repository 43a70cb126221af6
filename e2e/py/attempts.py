"""Gets and puts an object with boto3's default settings, and prints the results as JSON.

    attempts.py ENDPOINT REGION BUCKET KEY
"""

import json
import sys

import boto3
from botocore.exceptions import ClientError

endpoint, region, bucket, key = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=endpoint, region_name=region)


def attempt(call):
    try:
        meta, code = call()["ResponseMetadata"], ""
    except ClientError as e:
        meta, code = e.response["ResponseMetadata"], e.response["Error"]["Code"]
    return {"code": code, "status": meta["HTTPStatusCode"], "attempts": 1 + meta.get("RetryAttempts", 0)}


print(json.dumps({
    "GetObject": attempt(lambda: s3.get_object(Bucket=bucket, Key=key)),
    "PutObject": attempt(lambda: s3.put_object(Bucket=bucket, Key=key + ".new", Body=b"x")),
}))

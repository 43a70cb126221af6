"""Uploads a file with boto3, in parts of 8 MiB, eight at a time: upload.py ENDPOINT REGION BUCKET KEY FILE."""

import sys

import boto3
from boto3.s3.transfer import TransferConfig

endpoint, region, bucket, key, path = sys.argv[1:]
config = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=8)
boto3.client("s3", endpoint_url=endpoint, region_name=region).upload_file(path, bucket, key, Config=config)

#!/usr/bin/env python3
"""Decrypts an object of cmekproxy without any of the proxy's code.

Reads the object directly from the store.

    decrypt.py [--endpoint-url URL] [--region REGION]
               [--kms-endpoint-url URL | --local-key-file FILE]
               [--recovery-key FILE]
               [--sse-customer-key FILE] [--headers] s3://bucket/key [-o FILE]

boto3 supplies the credentials. The output gets its final name when every byte
is verified.
"""

import argparse
import os
import sys
from collections.abc import Iterator

import boto3
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError
from format import OVERHEAD, Ask, FormatError, Multipart, Unwrap, is_multipart, open_single, open_upload, recovery_key, sealed_headers, together, unwrapper
from localkey import local_key


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("object", help="s3://bucket/key")
    parser.add_argument("-o", "--output", help="file to write (default: the last part of the key)")
    parser.add_argument("--endpoint-url", help="endpoint of the store")
    parser.add_argument("--region")
    parser.add_argument("--kms-endpoint-url", help="endpoint of AWS KMS, if not the default")
    parser.add_argument("--local-key-file", help="the key file of provider local")
    parser.add_argument("--recovery-key", metavar="FILE", help="file with the recovery private key, instead of a KMS key")
    parser.add_argument("--sse-customer-key", metavar="FILE", help="file with the 32 bytes of the customer key (SSE-C)")
    parser.add_argument("--headers", action="store_true", help="print the object's sealed headers, if it has any")
    args = parser.parse_args()
    if not args.object.startswith("s3://") or "/" not in args.object[5:]:
        parser.error(f"{args.object} is not of the form s3://bucket/key")
    bucket, key = args.object[5:].split("/", 1)
    try:
        store = boto3.client("s3", endpoint_url=args.endpoint_url, region_name=args.region, config=Config(response_checksum_validation="when_required"))
    except TypeError:  # botocore before 1.36 has no such setting and does not validate
        store = boto3.client("s3", endpoint_url=args.endpoint_url, region_name=args.region)
    try:
        decrypt(store, bucket, key, args)
    except (FormatError, ClientError, BotoCoreError, OSError) as e:
        print(f"decrypt.py: {args.object}: {e}", file=sys.stderr)
        return 1
    return 0


def decrypt(store, bucket: str, key: str, args: argparse.Namespace) -> None:
    answer = store.get_object(Bucket=bucket, Key=key)
    metadata = {name.lower(): value for name, value in answer["Metadata"].items()}
    unwrap = cached(unwrapper(key_of(args), bucket, key.encode(), customer_key(args)))
    write(plaintext(store, answer, metadata, bucket, key, unwrap), args.output or os.path.basename(key))
    if args.headers:
        print_headers(sealed_headers(metadata, bucket, key.encode(), unwrap) or {})


def key_of(args: argparse.Namespace) -> Ask:
    if args.recovery_key:
        with open(args.recovery_key, encoding="ascii") as f:
            return recovery_key(f.read())
    return together(local_key(args.local_key_file) if args.local_key_file else aws_kms(args))


def customer_key(args: argparse.Namespace) -> bytes | None:
    if not args.sse_customer_key:
        return None
    with open(args.sse_customer_key, "rb") as f:
        return f.read()


def write(pieces: Iterator[bytes], output: str) -> None:
    part = output + ".part"
    with open(part, "wb") as f:
        for piece in pieces:
            f.write(piece)
    os.replace(part, output)


def print_headers(headers: dict[str, bytes]) -> None:
    for name, value in headers.items():
        print(f"{name}: {value.decode(errors='backslashreplace')}")


def plaintext(store, answer, metadata: dict[str, str], bucket: str, key: str, unwrap: Unwrap) -> Iterator[bytes]:
    if not is_multipart(metadata):
        return open_single(answer["Body"], metadata, bucket, key.encode(), unwrap)

    def tail() -> bytes:
        size = answer["ContentLength"]
        wanted = f"bytes={size - OVERHEAD}-{size - 1}"
        return store.get_object(Bucket=bucket, Key=key, Range=wanted, IfMatch=answer["ETag"])["Body"].read()

    sealed = open_upload(metadata, bucket, key.encode(), unwrap)
    return iter(Multipart(answer["Body"], bucket, key.encode(), unwrap, tail, sealed))


def cached(unwrap: Unwrap) -> Unwrap:
    """Caches data keys: the parts of an upload usually share one."""
    known: dict[tuple[str, bytes], bytes] = {}

    def look(key_id: str, wrapped: bytes) -> bytes:
        if (key_id, wrapped) not in known:
            known[key_id, wrapped] = unwrap(key_id, wrapped)
        return known[key_id, wrapped]

    return look


def aws_kms(args: argparse.Namespace) -> Ask:
    kms = boto3.client("kms", endpoint_url=args.kms_endpoint_url, region_name=args.region)

    def ask(key_id: str, wrapped: bytes, context: dict[str, str]) -> bytes:
        return kms.decrypt(CiphertextBlob=wrapped, KeyId=key_id, EncryptionContext=context)["Plaintext"]

    return ask


if __name__ == "__main__":
    sys.exit(main())

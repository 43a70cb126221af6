#!/usr/bin/env python3
"""Decrypts an object of cmekproxy, straight from the store, without any code of the proxy's.

    decrypt.py [--endpoint-url URL] [--region REGION] [--kms-endpoint-url URL | --local-key-file FILE] s3://bucket/key [-o FILE]

Credentials are boto3's own. The output has its name only once every byte of it has verified.
"""

import argparse
import base64
import hashlib
import os
import struct
import sys
from collections.abc import Iterator

import boto3
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from format import OVERHEAD, FormatError, Multipart, Unwrap, is_multipart, open_single


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("object", help="s3://bucket/key")
    parser.add_argument("-o", "--output", help="file to write (default: the last part of the key)")
    parser.add_argument("--endpoint-url", help="of the store")
    parser.add_argument("--region")
    parser.add_argument("--kms-endpoint-url", help="of AWS KMS, if it is not AWS's own")
    parser.add_argument("--local-key-file", help="the key file of provider local")
    args = parser.parse_args()
    if not args.object.startswith("s3://") or "/" not in args.object[5:]:
        parser.error(f"{args.object} is not of the form s3://bucket/key")
    bucket, key = args.object[5:].split("/", 1)
    try:
        store = boto3.client("s3", endpoint_url=args.endpoint_url, region_name=args.region, config=Config(response_checksum_validation="when_required"))
    except TypeError:  # botocore before 1.36 has no such setting, and validates nothing
        store = boto3.client("s3", endpoint_url=args.endpoint_url, region_name=args.region)
    unwrap = cached(local_unwrapper(args.local_key_file, bucket, key) if args.local_key_file else kms_unwrapper(args, bucket, key))
    output = args.output or os.path.basename(key)
    try:
        write(plaintext(store, bucket, key, unwrap), output)
    except (FormatError, ClientError, BotoCoreError, OSError) as e:
        print(f"decrypt.py: {args.object}: {e}", file=sys.stderr)
        return 1
    return 0


def write(pieces: Iterator[bytes], output: str) -> None:
    part = output + ".part"
    with open(part, "wb") as f:
        for piece in pieces:
            f.write(piece)
    os.replace(part, output)


def plaintext(store, bucket: str, key: str, unwrap: Unwrap) -> Iterator[bytes]:
    answer = store.get_object(Bucket=bucket, Key=key)
    metadata = {name.lower(): value for name, value in answer["Metadata"].items()}
    if not is_multipart(metadata):
        return open_single(answer["Body"], metadata, bucket, key.encode(), unwrap)

    def tail() -> bytes:
        size = answer["ContentLength"]
        wanted = f"bytes={size - OVERHEAD}-{size - 1}"
        return store.get_object(Bucket=bucket, Key=key, Range=wanted, IfMatch=answer["ETag"])["Body"].read()

    return iter(Multipart(answer["Body"], bucket, key.encode(), unwrap, tail))


def cached(unwrap: Unwrap) -> Unwrap:
    """Parts of one upload mostly share a data key."""
    known: dict[tuple[str, bytes], bytes] = {}

    def look(key_id: str, wrapped: bytes) -> bytes:
        if (key_id, wrapped) not in known:
            known[key_id, wrapped] = unwrap(key_id, wrapped)
        return known[key_id, wrapped]

    return look


def kms_unwrapper(args: argparse.Namespace, bucket: str, key: str) -> Unwrap:
    kms = boto3.client("kms", endpoint_url=args.kms_endpoint_url, region_name=args.region)

    def unwrap(key_id: str, wrapped: bytes) -> bytes:
        return kms.decrypt(CiphertextBlob=wrapped, KeyId=key_id, EncryptionContext={"bucket": bucket, "key": key})["Plaintext"]

    return unwrap


def local_unwrapper(path: str, bucket: str, key: str) -> Unwrap:
    """Section 5 of docs/format.md."""
    with open(path, encoding="ascii") as f:
        line = f.read()
    prefix = "cmekproxy-local-key-v1:"
    if not line.startswith(prefix) or not line.endswith("\n"):
        raise SystemExit(f"decrypt.py: {path} is not a key file of provider local")
    secret = base64.b64decode(line[len(prefix) : -1], validate=True)
    own_id = "local:" + hashlib.sha256(b"cmekproxy local key id v1" + secret).hexdigest()[:16]

    def unwrap(key_id: str, wrapped: bytes) -> bytes:
        if key_id != own_id:
            raise FormatError(f"the object is under the key {key_id}, and the file has {own_id}")
        if len(wrapped) != 61 or wrapped[0] != 1:
            raise FormatError("malformed wrapped data key")
        names = ["bucket", bucket, "key", key]
        aad = b"cmekproxy local wrap v1\x01" + string(own_id) + struct.pack(">I", 2) + b"".join(map(string, names))
        try:
            return AESGCM(secret).decrypt(wrapped[1:13], wrapped[13:], aad)
        except InvalidTag:
            raise FormatError("the data key does not unwrap for this object") from None

    return unwrap


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">Q", len(data)) + data


if __name__ == "__main__":
    sys.exit(main())

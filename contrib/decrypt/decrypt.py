#!/usr/bin/env python3
"""Decrypts an object of cmekproxy without any of the proxy's code.

Reads the object directly from the store.

    decrypt.py [--endpoint-url URL] [--region REGION]
               [--kms-endpoint-url URL | --local-key-file FILE]
               [--recovery-key FILE]
               [--sse-customer-key FILE] s3://bucket/key [-o FILE]

boto3 supplies the credentials. The output gets its final name when every byte
is verified.
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
from format import OVERHEAD, Ask, FormatError, Multipart, Unwrap, is_multipart, open_single, recovery_key, together, unwrapper


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
    args = parser.parse_args()
    if not args.object.startswith("s3://") or "/" not in args.object[5:]:
        parser.error(f"{args.object} is not of the form s3://bucket/key")
    bucket, key = args.object[5:].split("/", 1)
    try:
        store = boto3.client("s3", endpoint_url=args.endpoint_url, region_name=args.region, config=Config(response_checksum_validation="when_required"))
    except TypeError:  # botocore before 1.36 has no such setting and does not validate
        store = boto3.client("s3", endpoint_url=args.endpoint_url, region_name=args.region)
    customer_key = None
    if args.sse_customer_key:
        with open(args.sse_customer_key, "rb") as f:
            customer_key = f.read()
    if args.recovery_key:
        with open(args.recovery_key, encoding="ascii") as f:
            ask = recovery_key(f.read())
    else:
        ask = together(local_key(args.local_key_file) if args.local_key_file else aws_kms(args))
    unwrap = cached(unwrapper(ask, bucket, key.encode(), customer_key))
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


def local_key(path: str) -> Ask:
    """Unwraps with a key file of provider local: section 5 of docs/format.md."""
    own_id, versions = local_keys(path)

    def ask(key_id: str, wrapped: bytes, context: dict[str, str]) -> bytes:
        if key_id != own_id:
            raise FormatError(f"the object is encrypted under the key {key_id}, but the file has {own_id}")
        if len(wrapped) == 61 and wrapped[0] == 1:
            prefix, version = wrapped[:1], 1
        elif len(wrapped) == 65 and wrapped[0] == 2:
            prefix, version = wrapped[:5], struct.unpack(">I", wrapped[1:5])[0]
        else:
            raise FormatError("malformed wrapped data key")
        if version not in versions:
            raise FormatError(f"the object is encrypted under version {version} of the key, which the file does not have")
        sealed = wrapped[len(prefix) :]
        entries = b"".join(string(name) + string(value) for name, value in sorted(context.items(), key=lambda e: e[0].encode()))
        aad = b"cmekproxy local wrap v1" + prefix + string(own_id) + struct.pack(">I", len(context)) + entries
        try:
            return AESGCM(versions[version]).decrypt(sealed[:12], sealed[12:], aad)
        except InvalidTag:
            raise FormatError("authentication failed: the wrapped data key") from None

    return ask


def local_keys(path: str) -> tuple[str, dict[int, bytes]]:
    """Returns the id of a key file, and the versions that are not destroyed.

    Disabled versions are included: only the proxy enforces states.
    """
    with open(path, encoding="ascii", newline="") as f:
        text = f.read()
    older, newer = "cmekproxy-local-key-v1:", "cmekproxy-local-key-v2\n"
    if text.startswith(older) and text.endswith("\n"):
        secret = base64.b64decode(text[len(older) : -1], validate=True)
        return "local:" + hashlib.sha256(b"cmekproxy local key id v1" + secret).hexdigest()[:16], {1: secret}
    body, _, checksum = text.rpartition("checksum ")
    if not text.startswith(newer) or checksum != hashlib.sha256(body.encode()).hexdigest() + "\n":
        raise SystemExit(f"decrypt.py: {path} is not a complete key file of provider local")
    lines = [line.split(" ") for line in body.splitlines()]
    return lines[1][1], {int(line[1]): base64.b64decode(line[4], validate=True) for line in lines[3:] if line[4] != "-"}


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">Q", len(data)) + data


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Reads what each release wrote: cmd/proxy/testdata/corpus.

Needs only `cryptography`.
"""

import base64
import hashlib
import json
import struct
import sys
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from format import CHECKSUMS, OVERHEAD, Ask, Bytes, FormatError, Multipart, Unwrap, is_multipart, open_checksums, open_single, open_upload, parse_envelope, recovery_key, sealed_headers, together, unwrapper
from localkey import local_key, local_keys

CORPUS = Path(__file__).parents[2] / "cmd" / "proxy" / "testdata" / "corpus"


def plaintext(key: str, size: int) -> bytes:
    out = b"".join(hashlib.sha256(key.encode() + b"\0" + struct.pack(">Q", i)).digest() for i in range(-(-size // 32)))
    return out[:size]


class Stored:
    """An object of the corpus, as it was in the store."""

    def __init__(self, folder: Path, o: dict, bucket: str) -> None:
        self.bucket, self.key = bucket, o["key"].encode()
        prefix = "x-amz-meta-"
        self.metadata = {name.lower().removeprefix(prefix): value for name, value in o["stored_headers"].items() if name.lower().startswith(prefix)}
        kept = (folder / o["stored_file"]).read_bytes() if "stored_file" in o else b""
        self.body = b""
        for part in o["stored_parts"]:
            stored = bytearray(part["size"])
            for first, last in (map(int, piece.split("-")) for piece in part.get("kept", [])):
                stored[first : last + 1], kept = kept[: last + 1 - first], kept[last + 1 - first :]
            self.body += stored

    def read(self, unwrap: Unwrap, body: bytes | None = None) -> Iterator[bytes]:
        body = self.body if body is None else body
        if not is_multipart(self.metadata):
            return open_single(Bytes(body), self.metadata, self.bucket, self.key, unwrap)
        upload = open_upload(self.metadata, self.bucket, self.key, unwrap)
        return iter(Multipart(Bytes(body), self.bucket, self.key, unwrap, lambda: body[-OVERHEAD:], upload))


class Corpus(unittest.TestCase):
    def each(self, check: Callable[[Path, dict, Stored, Unwrap], None]) -> None:
        """Calls check for each object of each folder."""
        for folder in sorted(path for path in CORPUS.iterdir() if path.is_dir()):
            document = json.loads((folder / "objects.json").read_text())
            ask = together(any_local(folder))
            for o in document["objects"]:
                customer = (folder / o["customer_key"]).read_bytes() if "customer_key" in o else None
                with self.subTest(folder.name + " " + o["key"]):
                    check(folder, o, Stored(folder, o, document["bucket"]), unwrapper(ask, document["bucket"], o["key"].encode(), customer))

    def test_read(self) -> None:
        read = 0

        def check(folder: Path, o: dict, stored: Stored, unwrap: Unwrap) -> None:
            nonlocal read
            text = plaintext(o["key"], o["size"])
            self.assertEqual(hashlib.sha256(text).hexdigest(), o["sha256"])
            if "missing" in o:
                self.assertTrue(text.startswith(self.until_refused(stored.read(unwrap))))
                return
            self.assertEqual(b"".join(stored.read(unwrap)), text)
            if "recovery_key" in o:
                recovery = recovery_key((folder / o["recovery_key"]).read_text())
                self.assertEqual(b"".join(stored.read(unwrapper(recovery, stored.bucket, stored.key))), text)
            read += 1

        self.each(check)
        self.assertGreater(read, 40)

    def until_refused(self, pieces: Iterator[bytes]) -> bytes:
        got = b""
        with self.assertRaises(FormatError):
            for piece in pieces:
                got += piece
        return got

    def test_headers(self) -> None:
        def check(_: Path, o: dict, stored: Stored, unwrap: Unwrap) -> None:
            want = {name.lower(): value for name, value in o["headers"].items()}
            if not is_multipart(stored.metadata):
                e = parse_envelope(stored.metadata)
                sums = open_checksums(e.sealed_sum, unwrap(e.key_id, e.wrapped_dek))
                got = {"x-amz-checksum-" + CHECKSUMS[kind][0].lower(): base64.b64encode(digest).decode() for kind, digest in sums.items()}
                self.assertEqual(got, {name: value for name, value in want.items() if name.startswith("x-amz-checksum-") and name != "x-amz-checksum-type"})
            headers = sealed_headers(stored.metadata, stored.bucket, stored.key, unwrap)
            if headers is not None:
                self.assertEqual(headers, {name: value.encode() for name, value in want.items() if not name.startswith("x-amz-checksum-")})

        self.each(check)

    def test_refused(self) -> None:
        def check(_: Path, o: dict, stored: Stored, unwrap: Unwrap) -> None:
            if "missing" in o:
                return
            for at in {0, len(stored.body) // 2, len(stored.body) - 1} if stored.body else ():
                bad = bytearray(stored.body)
                bad[at] ^= 1
                self.until_refused(stored.read(unwrap, bytes(bad)))
            stored.bucket = "other"
            with self.assertRaises(FormatError):
                list(stored.read(unwrap))

        self.each(check)


def any_local(folder: Path) -> Ask:
    """Returns an Ask for all local keys of a folder."""
    paths = [path for path in (folder / "keys").iterdir() if path.read_bytes().startswith(b"cmekproxy-local-key-")]
    asks = {local_keys(str(path))[0]: local_key(str(path)) for path in paths}

    def ask(key_id: str, wrapped: bytes, context: dict[str, str]) -> bytes:
        if key_id not in asks:
            raise FormatError(f"no file has the key {key_id}")
        return asks[key_id](key_id, wrapped, context)

    return ask


if __name__ == "__main__":
    unittest.main()

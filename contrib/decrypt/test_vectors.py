#!/usr/bin/env python3
"""Reads all test vectors of versions 1 and 2, and checks that malformed objects are rejected.

Needs only `cryptography`.
"""

import base64
import hashlib
import json
import os
import struct
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from format import HEADER, OVERHEAD, Bytes, FormatError, Multipart, NoEnvelope, derive, is_multipart, open_checksums, open_single, open_upload, parse_bundle, parse_envelope, parse_wrapped, part_segment, recovery_key, sealed_headers, segments, together, unwrapper

TESTDATA = Path(__file__).parents[2] / "internal" / "crypt" / "testdata"
VERSION_2 = json.loads((TESTDATA / "vectors-v2.json").read_text())
SINGLE = json.loads((TESTDATA / "vectors.json").read_text())["objects"] + VERSION_2["objects"]
PARTS = [json.loads((TESTDATA / "part-vectors.json").read_text()), VERSION_2["multipart"]]
KEYS = json.loads((TESTDATA / "key-vectors.json").read_text())
BUNDLES = json.loads((TESTDATA.parents[1] / "kms" / "testdata" / "bundle-vectors.json").read_text())


def pattern(n: int) -> bytes:
    return bytes((i * 131 + (i >> 8) * 17) & 0xFF for i in range(n))


def sealed(dek: bytes, header: bytes, text: bytes, segment: int = 65536) -> bytes:
    """Returns the stream of a plaintext, for vectors that have only a hash."""
    gcm = AESGCM(derive(dek, header[1:33], b"cmekproxy v1 body"))
    last, out, at = segments(len(text), segment) - 1, [header], 0
    for i in range(last + 1):
        room = segment - HEADER if i == 0 else segment
        out.append(gcm.encrypt(header[33:40] + struct.pack(">IB", i, i == last), text[at : at + room], None))
        at += room
    return b"".join(out)


class Bundles(unittest.TestCase):
    def test_vectors(self) -> None:
        for v in BUNDLES:
            with self.subTest(v["name"]):
                blob = bytes.fromhex(v["bundle"])
                ask = together(lambda key_id, _, context, v=v: self.answer(v, key_id, context))
                self.assertEqual(ask(v["key_id"], blob, v["context"]).hex(), v["dek"])
                if not v["recovery"]:
                    continue
                recover = recovery_key(v["recovery"])
                self.assertEqual(recover(v["key_id"], blob, v["context"]).hex(), v["dek"])
                for bad, context in ((blob[:-1], v["context"]), (blob[:-1] + bytes([blob[-1] ^ 1]), v["context"]), (blob, v["context"] | {"bucket": "other"}), (b"x" * 61, v["context"])):
                    self.assertRaises(FormatError, recover, v["key_id"], bad, context)

    def answer(self, v: dict, key_id: str, context: dict[str, str]) -> bytes:
        self.assertEqual(context, v["context"])
        return bytes.fromhex(v["unwraps"][key_id])

    def test_malformed(self) -> None:
        for v in BUNDLES:
            blob = bytes.fromhex(v["bundle"])
            for bad in (blob + b"\0", blob[:8] + b"\x02" + blob[9:], blob[:9] + b"\x03" + blob[10:], blob[:10] + b"\x05" + blob[11:], blob[:11] + b"\x03" + blob[12:], blob[:12]):
                self.assertRaises(FormatError, parse_bundle, bad)

    def test_downgrade(self) -> None:
        """One key alone does not open what several must wrap, and the other way round."""
        ask = together(lambda *_: bytes(32))
        for v in BUNDLES:
            for key_id in {"all-of:x", "any-of:x", "local:0"} - {v["key_id"] if v["key_id"].endswith(":x") else "local:0"}:
                self.assertRaises(FormatError, ask, key_id, bytes.fromhex(v["bundle"]), v["context"])
        self.assertRaises(FormatError, ask, "all-of:x", b"blob", {})


class Keys(unittest.TestCase):
    def test_wrapped(self) -> None:
        for v in KEYS["wrapped"]:
            with self.subTest(v["name"]):
                w = parse_wrapped(bytes.fromhex(v["wrapped"]))
                self.assertEqual(((w.salt or b"").hex(), w.context, w.blob.hex()), (v.get("salt", ""), v.get("context", {}), v["blob"]))
                if w.salt:
                    asked = []
                    ask = lambda key_id, blob, context: asked.append((blob.hex(), context)) or bytes.fromhex(v["bucket_key"])
                    dek = unwrapper(ask, v["bucket"], bytes.fromhex(v["key"]))("a key", bytes.fromhex(v["wrapped"]))
                    self.assertEqual(dek.hex(), v["dek"])
                    self.assertEqual(asked, [(v["blob"], {"bucket": v["bucket"]} | v.get("context", {}))])

    def test_customer(self) -> None:
        for v in KEYS["customer"]:
            key, wrapped = bytes.fromhex(v["customer_key"]), bytes.fromhex(v["wrapped"])
            unwrap = lambda k, w, name=bytes.fromhex(v["key"]): unwrapper(None, v["bucket"], name, k)("sse-c", w)
            self.assertEqual(unwrap(key, wrapped).hex(), v["dek"])
            for bad in (lambda: unwrap(os.urandom(32), wrapped), lambda: unwrap(None, wrapped), lambda: unwrap(bytes(32), wrapped), lambda: unwrap(key, wrapped[:-1]),
                        lambda: unwrap(key, b"\2" + wrapped[1:]), lambda: unwrap(key, wrapped, b"other")):
                with self.assertRaises(FormatError):
                    bad()

    def test_refusals(self) -> None:
        salt = b"s" * 32
        for bad in (b"", b"\1", b"\1\0blob", b"\1\5" + salt + b"blob", b"\2\1" + salt + b"blob", b"\1\1" + salt, b"\1\2\0\0blob", b"\1\2\0\1\0\0\0\1bblob",
                    b"\1\2\0\2\0\1b\0\0\0\1a\0\0blob", b"\1\2\0\1\0\3key\0\0blob", b"\1\2\0\1\0\1\xff\0\0blob"):
            with self.subTest(bad), self.assertRaises(FormatError):
                parse_wrapped(b"cmekwrap" + bad)


def check_sealed(t: unittest.TestCase, v: dict, metadata: dict[str, str], unwrap) -> None:
    """Checks the sealed headers of a vector. An absent content type has a default."""
    want = v.get("sealed_metadata")
    if want is None and "cmek-meta" in metadata:
        want = {}
    if want is not None:
        want = {"content-type": "binary/octet-stream"} | want
    got = sealed_headers(metadata, v["bucket"], bytes.fromhex(v["key"]), unwrap)
    t.assertEqual(got and {name: value.decode() for name, value in got.items()}, want)


class Single(unittest.TestCase):
    def read(self, v: dict, body: bytes, metadata: dict | None = None, dek: bytes | None = None, bucket: str | None = None, key: bytes | None = None) -> bytes:
        unwrap = lambda key_id, wrapped: bytes.fromhex(v["dek"]) if dek is None else dek
        return b"".join(open_single(Bytes(body), metadata or v["metadata"], bucket or v["bucket"], bytes.fromhex(v["key"]) if key is None else key, unwrap))

    def body(self, v: dict) -> bytes:
        body = sealed(bytes.fromhex(v["dek"]), bytes.fromhex(v["header"]), pattern(v["plaintext_size"]))
        if v.get("body"):
            self.assertEqual(body.hex(), v["body"])
        self.assertEqual(hashlib.sha256(body).hexdigest(), v["body_sha256"])
        return body

    def test_vectors(self) -> None:
        for v in SINGLE:
            with self.subTest(v["name"]):
                self.assertFalse(is_multipart(v["metadata"]))
                text = self.read(v, self.body(v))
                self.assertEqual(hashlib.sha256(text).hexdigest(), v["plaintext_sha256"])
                sums = open_checksums(parse_envelope(v["metadata"]).sealed_sum, bytes.fromhex(v["dek"]))
                self.assertEqual({str(k): d.hex() for k, d in sums.items()}, v.get("checksums", {}))
                check_sealed(self, v, v["metadata"], lambda key_id, wrapped, v=v: bytes.fromhex(v["dek"]))

    def test_refusals(self) -> None:
        for name in ("two segments", "sealed metadata"):
            self.refusals(next(v for v in SINGLE if v["name"] == name))

    def refusals(self, v: dict) -> None:
        body, meta = self.body(v), v["metadata"]
        flipped = lambda i: body[:i] + bytes([body[i] ^ 1]) + body[i + 1 :]
        bad_bodies = [flipped(i) for i in (0, 5, 35, 40, 1000, 65551, 65552, len(body) - 1)]
        bad_bodies += [body[:n] for n in (0, 39, 40, 56, 65551, 65552, 65553, len(body) - 1)] + [body + b"\0"]
        for bad in bad_bodies:
            with self.assertRaises(FormatError):
                self.read(v, bad)
        for change in ({"dek": os.urandom(32)}, {"dek": bytes(32)}, {"dek": b"short"}, {"bucket": "other"}, {"key": b"other"}):
            with self.assertRaises(FormatError):
                self.read(v, body, **change)
        for name, value in meta.items():
            without = {k: x for k, x in meta.items() if k != name}
            bads = [value + "A", value + " ", "", value.rstrip("=") if value.endswith("=") else value + "="]
            for bad in [{**meta, name: b} for b in bads] + ([without] if name != "cmek-sum" else []):
                with self.subTest(name), self.assertRaises(FormatError):
                    self.read(v, body, bad)
        for bad in ({**meta, "cmek-extra": "1"}, {**meta, "cmek-v": "2" if meta["cmek-v"] == "1" else "1"}, {**meta, "cmek-suite": "0"}, {**meta, "cmek-type": "x"}):
            with self.assertRaises(FormatError):
                is_multipart(bad) or self.read(v, body, bad)
        with self.assertRaises(NoEnvelope):
            self.read(v, body, {"other": "1"})


def refused_as_they_are(vectors: dict) -> set[str]:
    """Returns the names of the objects that are refused unchanged."""
    parts = {v["name"]: list(range(len(v["parts"]))) for v in vectors["objects"]}
    return {row["of"] for row in vectors["refused"] if row["flip"] < 0 and row["parts"] == parts[row["of"]]}


class Parts(unittest.TestCase):
    def stored(self, v: dict) -> list[bytes]:
        out = []
        for p in v["parts"]:
            data = base64.b64decode(p["bytes"])
            out.append(data + bytes(p["plaintext_size"] + OVERHEAD - len(data)))
        return out

    def read(self, v: dict, stored: bytes, **change) -> tuple[bytes, Multipart]:
        unwrap = lambda key_id, wrapped: change.get("dek") or bytes.fromhex(v["deks"][wrapped.hex()])
        where = (change.get("bucket") or v["bucket"], change.get("key") or bytes.fromhex(v["key"]), unwrap)
        sealed = None
        if "metadata" in v:
            self.assertTrue(is_multipart(v["metadata"]))
            sealed = open_upload(v["metadata"], *where)
            check_sealed(self, v, v["metadata"], unwrap)
        m = Multipart(Bytes(stored), *where, lambda: stored[-OVERHEAD:], sealed)
        return b"".join(m), m

    def test_vectors(self) -> None:
        for v in (v for vectors in PARTS for v in vectors["objects"] if v["name"] not in refused_as_they_are(vectors)):
            if any("bytes" not in p for p in v["parts"]):
                self.assertEqual(part_segment(v["plaintext_size"]), 131072, "only one vector has no bytes")
                print(f"{v['name']}: the vector has only a hash; the end-to-end tests read such an object")
                continue
            with self.subTest(v["name"]):
                stored = b"".join(self.stored(v))
                self.assertEqual(hashlib.sha256(stored).hexdigest(), v["stored_sha256"])
                text, m = self.read(v, stored)
                self.assertEqual((len(text), hashlib.sha256(text).hexdigest()), (v["plaintext_size"], v["plaintext_sha256"]))
                self.assertEqual(text, pattern(v["plaintext_size"]))
                if "checksum" in v:
                    kind, sums = m.checksum
                    self.assertEqual(f"{ {1: 'FULL_OBJECT', 2: 'COMPOSITE'}[kind] } 5 {sums[5].hex()}", v["checksum"])

    def test_refused(self) -> None:
        for vectors in PARTS:
            objects = {v["name"]: v for v in vectors["objects"]}
            for row in vectors["refused"]:
                v = objects[row["of"]]
                stored = bytearray(b"".join(self.stored(v)[i] for i in row["parts"]))
                if row["flip"] >= 0:
                    stored[row["flip"]] ^= 1
                with self.subTest(row["name"]), self.assertRaises(FormatError):
                    self.read(v, bytes(stored))

    def test_more_refusals(self) -> None:
        for v in PARTS[0]["objects"][1:4] + [v for v in PARTS[1]["objects"] if v["name"] in ("three parts", "record with tags", "sealed metadata")]:
            stored = b"".join(self.stored(v))
            for change in ({"dek": os.urandom(32)}, {"bucket": "other"}, {"key": b"other"}):
                with self.assertRaises(FormatError):
                    self.read(v, stored, **change)
            for n in (0, 1, 500, 984, 1023, 1024, 1030, OVERHEAD, len(stored) - 1):
                with self.subTest(n), self.assertRaises(FormatError):
                    self.read(v, stored[:n])
            for bad in (stored + b"\0", stored + stored):
                with self.assertRaises(FormatError):
                    self.read(v, bad)
            for bit in range(8 * 1024):
                bad = bytearray(stored[:OVERHEAD])
                bad[bit // 8] ^= 1 << bit % 8
                with self.assertRaises((FormatError, KeyError)):  # KeyError: a wrapped DEK that is not in the vectors
                    self.read(v, bytes(bad) + stored[OVERHEAD:])


if __name__ == "__main__":
    unittest.main()

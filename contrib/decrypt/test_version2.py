#!/usr/bin/env python3
"""Writes objects of version 2 by docs/format.md, and breaks each rule for readers.

Needs only `cryptography`.
"""

import base64
import hashlib
import os
import struct
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from format import OVERHEAD, PART_HEADER, SSE_C, Bytes, FormatError, Multipart, SealedUpload, derive, is_multipart, mac, open_single, open_upload, part_segment, sealed_headers, segments, unwrapper

BUCKET, KEY, KMS_KEY = "bucket", b"a key", "local:0011223344556677"
DEK = bytes(range(32))
RANDOM, OTHER = b"r" * 16, b"o" * 16
HEADERS = {b"cache-control": b"no-store", b"content-type": b"text/plain", b"x-amz-meta-a": b"", b"x-amz-meta-b": bytes(range(0x80, 0x90))}


def unwrap(key_id: str, wrapped: bytes) -> bytes:
    """Unwraps a data key that is hashed from what was wrapped."""
    return hashlib.sha256(key_id.encode() + wrapped).digest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def stream(dek: bytes, text: bytes) -> bytes:
    header = b"\x28" + os.urandom(39)
    segment = part_segment(len(text))
    gcm, last, out, at = AESGCM(derive(dek, header[1:33], b"cmekproxy v1 body")), segments(len(text), segment) - 1, [header], 0
    for i in range(last + 1):
        room = segment - 40 if i == 0 else segment
        out.append(gcm.encrypt(header[33:] + struct.pack(">IB", i, i == last), text[at : at + room], None))
        at += room
    return b"".join(out)


def entries(headers: dict[bytes, bytes] | list[tuple[bytes, bytes]]) -> bytes:
    pairs = sorted(headers.items()) if isinstance(headers, dict) else headers
    return b"".join(struct.pack(">H", len(name)) + name + struct.pack(">H", len(value)) + value for name, value in pairs)


def padded(text: bytes) -> bytes:
    return text + bytes(2 + -(len(text) + 2) % 64)


def seal(dek: bytes, info: bytes, text: bytes) -> bytes:
    nonce = os.urandom(12)
    return nonce + AESGCM(derive(dek, None, info)).encrypt(nonce, text, None)


def seal_meta(dek: bytes, text: bytes) -> bytes:
    return seal(dek, b"cmekproxy v2 metadata", text)


def single(text: bytes, meta: bytes | None = None, version: int = 2, fields: int = 11) -> tuple[dict[str, str], bytes]:
    """Returns the metadata and the body of a single-PUT object. meta is the plaintext of the sealed metadata."""
    wrapped = os.urandom(40)
    dek = unwrap(KMS_KEY, wrapped)
    body = stream(dek, text)
    sealed = b"" if meta is None else seal_meta(dek, meta)
    covered = [bytes([version]), b"\x01", KMS_KEY.encode(), wrapped, body[:40], struct.pack(">Q", len(text)), b"", b"object", BUCKET.encode(), KEY, sealed]
    metadata = {"cmek-v": str(version), "cmek-suite": "1", "cmek-key": KMS_KEY, "cmek-dek": b64(wrapped), "cmek-header": b64(body[:40])}
    metadata |= {"cmek-size": str(len(text)), "cmek-mac": b64(mac(dek, covered[:fields]))}
    if meta is not None:
        metadata["cmek-meta"] = b64(sealed)
    return metadata, body


class Single(unittest.TestCase):
    def read(self, metadata: dict[str, str], body: bytes) -> tuple[bytes, dict[str, bytes] | None]:
        self.assertFalse(is_multipart(metadata))
        text = b"".join(open_single(Bytes(body), metadata, BUCKET, KEY, unwrap))
        return text, sealed_headers(metadata, BUCKET, KEY, unwrap)

    def refused(self, metadata: dict[str, str], body: bytes) -> None:
        with self.assertRaises(FormatError):
            is_multipart(metadata)
            b"".join(open_single(Bytes(body), metadata, BUCKET, KEY, unwrap))
        if "cmek-meta" in metadata:  # a HEAD has no body
            with self.assertRaises(FormatError):
                sealed_headers(metadata, BUCKET, KEY, unwrap)

    def test_read(self) -> None:
        for size in (0, 1, 65496, 65497, 200000):
            text = os.urandom(size)
            self.assertEqual(self.read(*single(text)), (text, None))
            self.assertEqual(self.read(*single(text, padded(entries(HEADERS)))), (text, {name.decode(): value for name, value in HEADERS.items()}))

    def test_empty_metadata(self) -> None:
        """No entries: the headers of the store do not count."""
        self.assertEqual(self.read(*single(b"", bytes(64)))[1], {"content-type": b"binary/octet-stream"})

    def test_padding(self) -> None:
        """Each length is padded to the next multiple of 64, with two zeros at least."""
        for n in range(130):
            text = padded(entries({b"x-amz-meta-a": b"v" * n}))
            self.assertEqual(len(text) % 64, 0)
            self.assertEqual(self.read(*single(b"", text))[1]["x-amz-meta-a"], b"v" * n)

    def test_largest(self) -> None:
        room = 8192 - 28 - 64  # 8,128 is the largest multiple of 64 that fits
        text = padded(entries({b"x-amz-meta-a": b"v" * (room // 64 * 64 + 64 - 2 - 16)}))
        self.assertEqual(len(text), 8128)
        self.assertIsNotNone(self.read(*single(b"", text))[1])
        self.refused(*single(b"", padded(text[:-2] + b"v")))

    def test_versions(self) -> None:
        """The MAC covers the version, and has one field more in version 2."""
        for meta in (None, bytes(64)):
            metadata, body = single(b"text", meta)
            for version in ("0", "1", "3", "02", ""):
                self.refused({**metadata, "cmek-v": version}, body)
        metadata, body = single(b"text", version=1, fields=10)
        self.assertEqual(self.read(metadata, body), (b"text", None))
        self.refused({**metadata, "cmek-v": "2"}, body)
        self.refused(*single(b"text", version=3))
        self.refused(*single(b"text", fields=10))
        self.refused(*single(b"text", version=1, fields=11))
        self.refused(*single(b"text", bytes(64), version=1, fields=11))
        self.refused(*single(b"text", bytes(64), version=1, fields=10))

    def test_exchanged(self) -> None:
        metadata, body = single(b"text", padded(entries(HEADERS)))
        other, _ = single(b"text", padded(entries(HEADERS)))
        without = {name: value for name, value in metadata.items() if name != "cmek-meta"}
        self.refused(without, body)
        self.refused({**metadata, "cmek-meta": other["cmek-meta"]}, body)
        self.refused({**metadata, "cmek-mac": other["cmek-mac"]}, body)
        self.refused({**metadata, "cmek-size": "5"}, body)
        added, body_added = single(b"text")
        self.refused({**added, "cmek-meta": metadata["cmek-meta"]}, body_added)
        sealed = base64.b64decode(metadata["cmek-meta"])
        for bad in ("", metadata["cmek-meta"] + "=", metadata["cmek-meta"].rstrip("=") + " ", b64(sealed[:-1]), b64(sealed + b"\0"), b64(bytes([sealed[0] ^ 1]) + sealed[1:])):
            self.refused({**metadata, "cmek-meta": bad}, body)

    def test_malformed(self) -> None:
        """The MAC verifies, and what is sealed is not as section 11 says."""
        good = padded(entries(HEADERS))
        value = lambda name, text=b"v": padded(entries([(name, text)]))
        rows = {
            "nothing": b"",
            "one zero": b"\0",
            "not a multiple of 64": good + b"\0",
            "64 zeros too many": good + bytes(64),
            "no zeros": entries([(b"x-amz-meta-a", b"v" * 48)]),
            "one zero only": entries([(b"x-amz-meta-a", b"v" * 47)]) + b"\0",
            "no entries, 128 zeros": bytes(128),
            "bytes after the end": good[:-1] + b"\1",
            "an entry after the end": bytes(2) + entries({b"x-amz-meta-a": b""}) + bytes(46),
            "the value is too long": struct.pack(">H", 12) + b"x-amz-meta-a" + b"\xff\xff" + bytes(48),
            "the name is too long": b"\xff\xff" + b"x" * 62,
            "twice": padded(entries([(b"x-amz-meta-a", b"1"), (b"x-amz-meta-a", b"2")])),
            "descending": padded(entries([(b"x-amz-meta-b", b"1"), (b"x-amz-meta-a", b"2")])),
            "upper case": value(b"X-Amz-Meta-A"),
            "upper case in the middle": value(b"x-amz-meta-aBc"),
            "no content header": value(b"content-length"),
            "no content header, the beginning of one": value(b"content-typ"),
            "a header of the store": value(b"x-amz-storage-class"),
            "no name": value(b"x-amz-meta-"),
            "an envelope": value(b"x-amz-meta-cmek-v"),
            "the beginning of an envelope": value(b"x-amz-meta-cmek-"),
            "not ASCII": value("x-amz-meta-ü".encode()),
            "not printable": value(b"x-amz-meta-\x7f"),
            "a space": value(b"x-amz-meta-a b"),
            "a value of two lines": value(b"x-amz-meta-a", b"b\r\nc: d"),
            "a value with a NUL": value(b"x-amz-meta-a", b"\0"),
        }
        for name, text in rows.items():
            with self.subTest(name):
                self.refused(*single(b"text", text))
        self.assertEqual(self.read(*single(b"text", value(b"x-amz-meta-cmek")))[1]["x-amz-meta-cmek"], b"v")


class Upload:
    """An upload, with the parts that its writers have sealed."""

    def __init__(self, random: bytes = RANDOM, store_id: bytes = b"upload id", sealed: bool = False) -> None:
        self.random, self.hash, self.sealed = random, hashlib.sha256(store_id).digest(), sealed

    def part(self, number: int, text: bytes = b"", final: bool = False, record: bytes = b"", version: int = 2, **other) -> bytes:
        wrapped = other.get("wrapped") or os.urandom(40)
        dek = unwrap(KMS_KEY, wrapped)
        upload = other.get("upload") or (self.hash if version == 1 else self.random + self.hash[:16])
        flags = other.get("flags", final | (self.sealed and version > 1) << 1)
        body = stream(dek, text)
        segment = part_segment(len(text))
        fields = [bytes([version]), b"\x01", KMS_KEY.encode(), wrapped, body[:40], struct.pack(">Q", len(text)), record, b"part", BUCKET.encode(), KEY]
        fields += [bytes([flags]), struct.pack(">H", number), struct.pack(">I", segment), upload]
        header = struct.pack(">8sBBBBHHQIHH32s32s", b"cmekpart", version, 1, flags, 0, number, len(record), len(text), segment, len(KMS_KEY), len(wrapped), upload, mac(dek, fields))
        whole = (header + KMS_KEY.encode() + wrapped).ljust(PART_HEADER, b"\0") + body + record
        return whole.ljust(OVERHEAD + len(text), b"\0")

    def metadata(self, meta: bytes = bytes(64), **other) -> dict[str, str]:
        plain = {"cmek-v": "2", "cmek-suite": "1", "cmek-type": "multipart", "cmek-key": KMS_KEY}
        if not self.sealed:
            return plain
        wrapped = os.urandom(40)
        dek = unwrap(KMS_KEY, wrapped)
        sealed = seal_meta(dek, meta)
        fields = [b"\x02", b"\x01", KMS_KEY.encode(), wrapped, b"", b"", b"", b"upload", BUCKET.encode(), KEY, sealed, self.random]
        return plain | {"cmek-dek": b64(wrapped), "cmek-meta": b64(sealed), "cmek-upload": b64(self.random), "cmek-mac": b64(mac(dek, other.get("fields", fields)))}


def number_of(part: bytes) -> int:
    return struct.unpack(">H", part[12:14])[0]


def size_of(part: bytes) -> int:
    return struct.unpack(">Q", part[16:24])[0]


def tag_of(part: bytes) -> bytes:
    return part[64:76]


def record(parts: list[bytes], tags: int = 2, runs: bool = True, version: int = 2, **other) -> bytes:
    """Returns the record of these parts, without a checksum."""
    layout = [(number_of(p), size_of(p)) for p in parts]
    out = struct.pack(">HBB", len(parts), 0, 0) + hashlib.sha256(b"".join(struct.pack(">HQ", *p) for p in layout)).digest()
    list_of = [struct.pack(">HHQ", number, 1, size) for number, size in layout] if runs else []
    if version > 1:
        out += struct.pack(">H", other.get("count", len(list_of)))
    out += b"".join(list_of)
    if version > 1:
        digest = hashlib.sha256(b"".join(tag_of(p) for p in other.get("digest_of", parts))).digest()
        out += bytes([other.get("kind", tags)]) + (digest if tags else b"") + b"".join(tag_of(p)[:4] for p in other.get("list_of", parts) if tags == 2)
    return out


class Parts(unittest.TestCase):
    def read(self, parts: list[bytes], metadata: dict[str, str] | None = None) -> bytes:
        metadata = metadata or Upload().metadata()
        self.assertTrue(is_multipart(metadata))
        stored = b"".join(parts)
        return b"".join(Multipart(Bytes(stored), BUCKET, KEY, unwrap, lambda: stored[-OVERHEAD:], open_upload(metadata, BUCKET, KEY, unwrap)))

    def refused(self, parts: list[bytes], metadata: dict[str, str] | None = None) -> None:
        with self.assertRaises(FormatError):
            self.read(parts, metadata)

    def ended(self, u: Upload, parts: list[bytes], version: int = 2, **other) -> list[bytes]:
        """Returns the parts and an appended part."""
        return [*parts, u.part(number_of(parts[-1]) + 1, final=True, record=record(parts, version=version, **other), version=version)]

    def test_read(self) -> None:
        for sealed in (False, True):
            u = Upload(sealed=sealed)
            meta = u.metadata()
            self.assertEqual(self.read([u.part(1, b"end", True)], meta), b"end")
            self.assertEqual(self.read([u.part(1, b"a"), u.part(2, b"b"), u.part(3, b"end", True)], meta), b"abend")
            parts = [u.part(1, b"a"), u.part(2, b"bb")]
            for tags in (0, 1, 2):
                for runs in (True, False):
                    self.assertEqual(self.read(self.ended(u, parts, tags=tags, runs=runs), meta), b"abb")
            self.assertEqual(self.read(self.ended(u, [u.part(2, b"a"), u.part(7, b"bb")]), meta), b"abb")

    def test_final(self) -> None:
        u = Upload()
        self.refused([u.part(1, b"a")])
        self.refused([u.part(1, b"a", True), u.part(2, b"b", True)])
        self.refused([*self.ended(u, [u.part(1, b"a")]), u.part(3, b"c", True)])
        self.refused(self.ended(u, [u.part(1, b"a", True)]))
        self.refused([u.part(1, b"a"), u.part(3, b"c", True)])
        self.refused([u.part(2, b"c", True)])

    def test_versions_together(self) -> None:
        """Writers that do not know the random bytes write parts of version 1."""
        for sealed in (False, True):
            u = Upload(sealed=sealed)
            meta = u.metadata()
            for first, second, end in ((1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 1, 2), (1, 1, 1), (2, 1, 1)):
                with self.subTest((sealed, first, second, end)):
                    parts = [u.part(1, b"a", version=first), u.part(2, b"b", version=second)]
                    self.assertEqual(self.read([*parts, u.part(3, b"c", True, version=end)], meta), b"abc")
                    self.assertEqual(self.read(self.ended(u, parts, version=end), meta), b"ab")
        u = Upload()
        self.assertEqual(self.read([u.part(1, b"a", True)], {**u.metadata(), "cmek-v": "1"}), b"a")

    def test_uploads(self) -> None:
        """Two uploads do not go together, whatever comes first."""
        u = Upload()
        others = {
            "other random bytes": Upload(OTHER),
            "other random bytes of another id": Upload(OTHER, b"another id"),
            "another id": Upload(RANDOM, b"another id"),
        }
        for name, other in others.items():
            with self.subTest(name):
                self.refused([u.part(1), other.part(2), u.part(3, b"c", True)])
                self.refused([u.part(1), other.part(2, b"c", True)])
                self.refused([u.part(1, version=1), u.part(2), other.part(3, b"c", True)])
                self.refused([u.part(1), u.part(2, version=1), other.part(3, b"c", True)])
                self.refused(self.ended(other, [u.part(1), u.part(2)]))
        other = others["another id"]
        for first, second in ((1, 2), (2, 1), (1, 1)):
            self.refused([u.part(1, version=first), other.part(2, b"c", True, version=second)])

    def test_first_half_of_the_hash(self) -> None:
        """Parts of version 1 must agree in the whole hash, although a part of version 2 has half of it."""
        u = Upload()
        near = u.hash[:16] + bytes(16)
        self.assertEqual(self.read([u.part(1, version=1, upload=near), u.part(2, b"c", True)]), b"c")
        self.refused([u.part(1, version=1, upload=near), u.part(2), u.part(3, b"c", True, version=1)])
        self.refused([u.part(1), u.part(2, version=1, upload=near), u.part(3, b"c", True, version=1)])
        self.refused([u.part(1), u.part(2, version=1, upload=bytes(16) + u.hash[16:]), u.part(3, b"c", True)])

    def test_headers(self) -> None:
        u, sealed = Upload(), Upload(sealed=True)
        self.refused([u.part(1, b"c", True)], {**u.metadata(), "cmek-v": "3"})
        self.refused([Upload(bytes(16)).part(1, b"c", True)])
        self.refused([u.part(1, b"c", version=3, final=True)])
        for flags in (4, 5, 8, 0x81):
            self.refused([u.part(1, b"c", True, flags=flags)])
        for flags in (2, 3):
            self.refused([u.part(1, b"c", True, version=1, flags=flags)])
            self.refused([sealed.part(1, b"c", True, version=1, flags=flags)], sealed.metadata())
        self.refused([u.part(1, b"c", flags=0)])
        self.refused([sealed.part(1, b"c", flags=2)], sealed.metadata())
        part = u.part(1, b"c", True)
        for at in (8, 10, *range(32, 96)):
            self.refused([part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :]])
        self.refused([part[:10] + b"\3" + part[11:]], sealed.metadata())

    def test_sealed(self) -> None:
        """Parts and metadata must agree on whether it is sealed, and on the random bytes."""
        u, sealed = Upload(), Upload(sealed=True)
        other = Upload(OTHER, sealed=True)
        self.refused([u.part(1, b"c", True)], sealed.metadata())
        self.refused([u.part(1), u.part(2, b"c", True)], sealed.metadata())
        self.refused([sealed.part(1), u.part(2, b"c", True)], sealed.metadata())
        self.refused([sealed.part(1, b"c", True)], u.metadata())
        self.refused([u.part(1), sealed.part(2, b"c", True)], u.metadata())
        self.refused([sealed.part(1, b"c", True)], other.metadata())
        self.refused([sealed.part(1, version=1), sealed.part(2, b"c", True)], other.metadata())
        self.refused(self.ended(u, [sealed.part(1, version=1)]), sealed.metadata())
        self.refused(self.ended(sealed, [sealed.part(1, version=1)]), u.metadata())

    def test_sealed_headers(self) -> None:
        u = Upload(sealed=True)
        metadata = u.metadata(padded(entries(HEADERS)))
        self.assertEqual(sealed_headers(metadata, BUCKET, KEY, unwrap), {name.decode(): value for name, value in HEADERS.items()})
        self.assertEqual(open_upload(u.metadata(), BUCKET, KEY, unwrap), SealedUpload(RANDOM, {"content-type": b"binary/octet-stream"}))
        self.assertIsNone(sealed_headers(Upload().metadata(), BUCKET, KEY, unwrap))

    def test_sealed_metadata(self) -> None:
        u = Upload(sealed=True)
        metadata, parts = u.metadata(), [u.part(1, b"c", True)]
        self.assertEqual(self.read(parts, metadata), b"c")
        other = u.metadata()
        for name in ("cmek-dek", "cmek-meta", "cmek-upload", "cmek-mac"):
            value = base64.b64decode(metadata[name])
            bads = [b64(bytes([value[0] ^ 1]) + value[1:]), b64(value[:-1]), b64(value + b"\0"), metadata[name] + "=", "", other[name] if name != "cmek-upload" else b64(OTHER)]
            for bad in [{**metadata, name: bad} for bad in bads] + [{n: v for n, v in metadata.items() if n != name}]:
                with self.subTest(bad), self.assertRaises(FormatError):
                    is_multipart(bad) and open_upload(bad, BUCKET, KEY, unwrap)
        for bad in ({"cmek-v": "1"}, {"cmek-v": "3"}, {"cmek-suite": "2"}, {"cmek-type": "x"}, {"cmek-key": "other"}, {"cmek-size": "0"}, {"cmek-header": b64(bytes(40))}):
            with self.subTest(bad), self.assertRaises(FormatError):
                open_upload(metadata | bad, BUCKET, KEY, unwrap)
        for where in (("other", KEY), (BUCKET, b"other")):
            self.assertRaises(FormatError, open_upload, metadata, *where, unwrap)
        zeros = Upload(bytes(16), sealed=True)
        self.assertRaises(FormatError, open_upload, zeros.metadata(), BUCKET, KEY, unwrap)
        for text in (b"", bytes(128), padded(entries([(b"x-amz-meta-cmek-v", b"")])), padded(entries({b"x-amz-meta-a": b"v" * 8120}))):
            self.assertRaises(FormatError, open_upload, u.metadata(text), BUCKET, KEY, unwrap)

    def test_sealed_under_a_customer_key(self) -> None:
        customer, salt = os.urandom(32), os.urandom(32)
        named = struct.pack(">I", len(BUCKET)) + BUCKET.encode() + struct.pack(">I", len(KEY)) + KEY
        wrapped = b"\1" + salt + AESGCM(derive(customer, salt, b"cmekproxy v1 sse-c" + named)).encrypt(bytes(12), DEK, None)
        sealed = seal_meta(DEK, bytes(64))
        fields = [b"\x02", b"\x01", b"sse-c", wrapped, b"", b"", b"", b"upload", BUCKET.encode(), KEY, sealed, RANDOM]
        metadata = Upload().metadata() | {"cmek-key": SSE_C, "cmek-dek": b64(wrapped), "cmek-meta": b64(sealed), "cmek-upload": b64(RANDOM), "cmek-mac": b64(mac(DEK, fields))}
        self.assertEqual(open_upload(metadata, BUCKET, KEY, unwrapper(None, BUCKET, KEY, customer)).random, RANDOM)
        for wrong in (None, os.urandom(32)):
            self.assertRaises(FormatError, open_upload, metadata, BUCKET, KEY, unwrapper(None, BUCKET, KEY, wrong))

    def test_records(self) -> None:
        u = Upload()
        parts = [u.part(1, b"a"), u.part(2, b"b"), u.part(3, b"c")]
        good = record(parts)
        bads = {
            "a byte more": good + b"\0",
            "a byte less": good[:-1],
            "three tags more": good + bytes(12),
            "a list that is too short": record(parts, list_of=parts[:2]),
            "a list of other parts": record(parts, list_of=[parts[1], parts[0], parts[2]]),
            "a digest of other parts": record(parts, digest_of=[parts[1], parts[0], parts[2]]),
            "a digest of fewer parts": record(parts, digest_of=parts[:2]),
            "tags of an unknown kind": record(parts, tags=1, kind=3),
            "tags of an unknown kind, and a list": record(parts, kind=3),
            "a list and the kind of a digest": record(parts, kind=1),
            "a digest and the kind of none": record(parts, tags=1, kind=0),
            "no list and its kind": record(parts, tags=1, kind=2),
            "no digest and its kind": record(parts, tags=0, kind=1),
            "too many runs": record(parts, count=4),
            "too few runs": record(parts, count=2),
            "more runs than bytes": record(parts, count=60000),
            "runs of other parts": good[:50] + struct.pack(">HHQ", 4, 1, 1) + good[62:],
            "runs of other lengths": good[:50] + struct.pack(">HHQ", 2, 1, 2) + good[62:],
            "that of version 1": record(parts, version=1),
            "nothing after the runs": record(parts, tags=0)[:-1],
            "the tags of fewer parts": record(parts[:2]),
        }
        for name, bad in bads.items():
            with self.subTest(name):
                self.refused([*parts, u.part(4, final=True, record=bad)])
        self.refused([*parts, u.part(4, final=True, record=good, version=1)])
        self.refused([*parts, u.part(3, final=True, record=good)])
        self.refused([*parts, u.part(4, record=good, flags=0)])
        self.refused([*parts, u.part(4, record=good, flags=0), u.part(4, b"c", True)])
        self.refused([*parts, u.part(4, b"x", final=True, record=good)])

    def test_other_attempts(self) -> None:
        """An earlier attempt at a part has the same upload, number and length."""
        u = Upload()
        parts = [u.part(1, b"a"), u.part(2, b"b")]
        for version in (2, 1):
            earlier = u.part(1, b"A", version=version)
            for tags in (1, 2):
                end = self.ended(u, parts, tags=tags)
                self.assertEqual(self.read(end), b"ab")
                self.refused([earlier, *end[1:]])
        self.assertEqual(self.read([u.part(1, b"A"), *self.ended(u, parts, tags=0)[1:]]), b"Ab", "a record without tags does not detect it")

    def test_exactly_one_digest(self) -> None:
        u = Upload()
        parts = [u.part(1, b"a")]
        for records, ok in ((b"\1" + bytes(4), True), (b"\1" + bytes(4) + b"\2" + bytes(4), False), (b"\0" * 5, False), (b"\1" + bytes(3), False), (b"", False)):
            wrapped = os.urandom(40)
            sealed = seal(unwrap(KMS_KEY, wrapped), b"cmekproxy v1 checksum", records)
            plain = record(parts)
            end = [*parts, u.part(2, final=True, wrapped=wrapped, record=plain[:2] + bytes([1, len(sealed)]) + plain[4:36] + sealed + plain[36:])]
            with self.subTest(records):
                if ok:
                    self.assertEqual(self.read(end), b"a")
                else:
                    self.refused(end)

    def test_largest_record(self) -> None:
        """2,014 tags fit, with one run and a CRC64NVME."""
        sealed = 12 + 9 + 16
        self.assertLessEqual(36 + sealed + 2 + 12 + 1 + 32 + 4 * 2014, 8176)
        self.assertGreater(36 + sealed + 2 + 12 + 1 + 32 + 4 * 2015, 8176)
        u = Upload()
        parts = [u.part(number) for number in range(1, 100)]
        self.assertEqual(self.read(self.ended(u, parts)), b"")


if __name__ == "__main__":
    unittest.main()

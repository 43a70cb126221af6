"""Reads the object format of cmekproxy: stored bytes in, plaintext out.

Written from docs/format.md, versions 1 and 2; comments name its sections. The only I/O is to
read the given stream. Plaintext is returned only after it is authenticated.
"""

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

HEADER = 40
TAG = 16
SEGMENT = 65536
PART_HEADER = 984
PART_PREFIX = PART_HEADER + HEADER
OVERHEAD = 9216
TAG_SPACE = 8192
MAX_PART = 5 * 2**30 - OVERHEAD
MAX_META = 8192
CHECKSUMS = {1: ("CRC32", 4), 2: ("CRC32C", 4), 3: ("CRC64NVME", 8), 4: ("SHA1", 20), 5: ("SHA256", 32), 6: ("SHA512", 64), 7: ("MD5", 16), 8: ("XXHASH64", 8), 9: ("XXHASH3", 8), 10: ("XXHASH128", 16)}


class FormatError(Exception):
    """The object was modified, or it is not in this format."""


class NoEnvelope(FormatError):
    """The object has no envelope entries."""


Unwrap = Callable[[str, bytes], bytes]  # KMS key id, stored wrapped DEK -> DEK
Ask = Callable[[str, bytes, dict[str, str]], bytes]  # KMS key id, ciphertext of the KMS, encryption context -> its plaintext


# Section 1: derived keys.


def derive(dek: bytes, salt: bytes | None, info: bytes) -> bytes:
    if len(dek) != 32 or not any(dek):
        raise FormatError("unusable data key")
    return HKDF(SHA256(), 32, salt, info).derive(dek)


# Section 2: streams. The segment size is 65,536, except in large parts (section 8.3).


def segments(size: int, segment: int) -> int:
    return max(1, -(-(size + HEADER) // segment))


def stream_size(size: int, segment: int = SEGMENT) -> int:
    return size + HEADER + TAG * segments(size, segment)


def read_exactly(src: BinaryIO, n: int) -> bytes:
    pieces, left = [], n
    while left:
        piece = src.read(left)
        if not piece:
            raise FormatError("body is truncated")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def open_stream(src: BinaryIO, dek: bytes, header: bytes, size: int, segment: int = SEGMENT) -> Iterator[bytes]:
    """Yields the plaintext of a stream. Its header has already been read from src."""
    if header[0] != HEADER:
        raise FormatError(f"authentication failed: header length is {header[0]}, not {HEADER}")
    gcm = AESGCM(derive(dek, header[1:33], b"cmekproxy v1 body"))
    last = segments(size, segment) - 1
    left = size
    for i in range(last + 1):
        room = segment - HEADER if i == 0 else segment
        text = min(left, room)
        nonce = header[33:40] + struct.pack(">IB", i, 1 if i == last else 0)
        try:
            yield gcm.decrypt(nonce, read_exactly(src, text + TAG), None)
        except InvalidTag:
            raise FormatError(f"authentication failed in segment {i} of {last + 1}") from None
        left -= text


# Section 3: the envelope.


def mac(dek: bytes, fields: list[bytes]) -> bytes:
    h = hmac.new(derive(dek, None, b"cmekproxy v1 mac"), digestmod=hashlib.sha256)
    for field in fields:
        h.update(struct.pack(">I", len(field)) + field)
    return h.digest()


def check_mac(dek: bytes, fields: list[bytes], want: bytes) -> None:
    if not hmac.compare_digest(mac(dek, fields), want):
        raise FormatError("authentication failed: the MAC")


@dataclass
class Envelope:
    version: int
    key_id: str
    wrapped_dek: bytes
    header: bytes
    size: int
    sealed_sum: bytes
    sealed_meta: bytes  # empty if there is none
    mac: bytes

    def verify(self, dek: bytes, bucket: str, key: bytes) -> None:
        fields = [bytes([self.version]), b"\x01", self.key_id.encode(), self.wrapped_dek, self.header, struct.pack(">Q", self.size), self.sealed_sum]
        more = [self.sealed_meta] if self.version > 1 else []
        check_mac(dek, [*fields, b"object", bucket.encode(), key, *more], self.mac)


def own_entries(metadata: dict[str, str]) -> dict[str, str]:
    """Returns the envelope entries, after a check of version and suite."""
    own = {name: value for name, value in metadata.items() if name.startswith("cmek-")}
    if not own:
        raise NoEnvelope("object has no envelope")
    if own.get("cmek-v") not in ("1", "2") or own.get("cmek-suite") != "1":
        raise FormatError("unknown version or suite")
    return own


def is_multipart(metadata: dict[str, str]) -> bool:
    own = own_entries(metadata)
    if "cmek-type" not in own:
        return False
    names = {"cmek-v", "cmek-suite", "cmek-type", "cmek-key"}
    if own["cmek-v"] == "2" and set(own) != names:
        names |= {"cmek-dek", "cmek-meta", "cmek-upload", "cmek-mac"}
    if set(own) != names or own["cmek-type"] != "multipart":
        raise FormatError("malformed metadata of a multipart object")
    check_key_id(own["cmek-key"])
    return True


def check_key_id(key_id: str) -> str:
    if not 1 <= len(key_id) <= 512 or any(not 0x21 <= ord(c) <= 0x7E for c in key_id):
        raise FormatError("malformed KMS key id")
    return key_id


def canonical(own: dict[str, str], name: str, least: int, most: int) -> bytes:
    text = own[name]
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"{name} is not base64") from None
    if not least <= len(data) <= most or base64.b64encode(data).decode() != text:
        raise FormatError(f"{name} is not canonical base64 of {least} to {most} bytes")
    return data


def parse_envelope(metadata: dict[str, str]) -> Envelope:
    own = own_entries(metadata)
    needed = {"cmek-v", "cmek-suite", "cmek-key", "cmek-dek", "cmek-header", "cmek-size", "cmek-mac"}
    optional = {"cmek-sum", "cmek-meta"} if own["cmek-v"] == "2" else {"cmek-sum"}
    if set(own) - optional != needed:
        raise FormatError("malformed envelope: missing or unknown entries")
    size = own["cmek-size"]
    if not size.isascii() or not size.isdigit() or str(int(size)) != size:
        raise FormatError("malformed cmek-size")
    return Envelope(
        version=int(own["cmek-v"]),
        key_id=check_key_id(own["cmek-key"]),
        wrapped_dek=canonical(own, "cmek-dek", 1, 1024),
        header=canonical(own, "cmek-header", 40, 40),
        size=int(size),
        sealed_sum=canonical(own, "cmek-sum", 1, 1024) if "cmek-sum" in own else b"",
        sealed_meta=canonical(own, "cmek-meta", 1, MAX_META) if "cmek-meta" in own else b"",
        mac=canonical(own, "cmek-mac", 32, 32),
    )


def open_single(src: BinaryIO, metadata: dict[str, str], bucket: str, key: bytes, unwrap: Unwrap) -> Iterator[bytes]:
    """Yields the plaintext of a single-PUT object."""
    e = parse_envelope(metadata)
    dek = unwrap(e.key_id, e.wrapped_dek)
    e.verify(dek, bucket, key)
    if e.sealed_meta:
        open_metadata(e.sealed_meta, dek)
    start = src.read(1)
    if not start and e.size == 0:
        return  # section 2: an empty plaintext may have no body
    if start + read_exactly(src, HEADER - 1) != e.header:
        raise FormatError("authentication failed: the header differs from the envelope's")
    yield from withholding_last(open_stream(src, dek, e.header, e.size), src)


def withholding_last(pieces: Iterator[bytes], src: BinaryIO) -> Iterator[bytes]:
    """Yields the pieces, but the last one only if src ends after it."""
    held = None
    for piece in pieces:
        if held is not None:
            yield held
        held = piece
    if src.read(1):
        raise FormatError("bytes after the last segment")
    if held is not None:
        yield held


# Section 4: sealed checksums.


def open_checksums(sealed: bytes, dek: bytes) -> dict[int, bytes]:
    if not sealed:
        return {}
    try:
        records = AESGCM(derive(dek, None, b"cmekproxy v1 checksum")).decrypt(sealed[:12], sealed[12:], None)
    except (InvalidTag, ValueError):
        raise FormatError("authentication failed: the sealed checksums") from None
    out: dict[int, bytes] = {}
    while records:
        kind = records[0]
        if kind not in CHECKSUMS or any(kind <= other for other in out) or len(records) < 1 + CHECKSUMS[kind][1]:
            raise FormatError("malformed checksums")
        out[kind], records = records[1 : 1 + CHECKSUMS[kind][1]], records[1 + CHECKSUMS[kind][1] :]
    return out


# Section 8: multipart objects.


@dataclass
class Record:
    parts: int
    kind: int
    sealed_sum: bytes
    digest: bytes
    runs: list[tuple[int, int, int]]  # first number, count, length
    tags_digest: bytes = b""  # empty if the record has no tags
    tags: list[bytes] | None = None  # the first 4 bytes of each; None if there is no list


@dataclass
class Part:
    version: int
    number: int
    size: int
    final: bool
    sealed: bool  # the metadata of the object is sealed
    segment: int
    upload: bytes
    key_id: str
    wrapped_dek: bytes
    header: bytes
    record: bytes
    mac: bytes

    @property
    def stream(self) -> int:
        return stream_size(self.size, self.segment)

    @property
    def tag(self) -> bytes:
        return self.mac[:12]

    @property
    def random(self) -> bytes:
        """The random bytes of the upload; empty in version 1."""
        return self.upload[:16] if self.version > 1 else b""

    @property
    def store_id(self) -> bytes:
        """The first 16 bytes of the hash of the upload id that the store gave."""
        return self.upload[16:] if self.version > 1 else self.upload[:16]

    def verify(self, dek: bytes, bucket: str, key: bytes) -> None:
        flags = bytes([self.final | self.sealed << 1])
        check_mac(
            dek,
            [
                *[bytes([self.version]), b"\x01", self.key_id.encode(), self.wrapped_dek, self.header, struct.pack(">Q", self.size), self.record],
                *[b"part", bucket.encode(), key, flags, struct.pack(">H", self.number), struct.pack(">I", self.segment), self.upload],
            ],
            self.mac,
        )


def part_segment(size: int) -> int:
    return SEGMENT * max(1, -(-(size + HEADER) // (512 * SEGMENT)))


def parse_part(prefix: bytes, src: BinaryIO) -> tuple[Part, bytes]:
    """Parses a part header, from the first 1,024 bytes of a part.

    If the part has a record, the rest of the part is read from src and returned
    too.
    """
    magic, version, suite, flags, zero, number, record, size, segment, k, w, upload, mac_ = struct.unpack(">8sBBBBHHQIHH32s32s", prefix[:96])
    if magic != b"cmekpart":
        raise FormatError("not a part header")
    if version not in (1, 2) or suite != 1:
        raise FormatError("unknown version or suite")
    names = prefix[96:PART_HEADER]
    if flags > (1 if version == 1 else 3) or zero or not 1 <= number <= 10000 or size > MAX_PART or not 1 <= k <= 512 or not 1 <= w <= 888 - k or any(names[k + w :]):
        raise FormatError("malformed part header")
    if version > 1 and not any(upload[:16]):
        raise FormatError("malformed part header: no random bytes of the upload")
    if segment != part_segment(size):
        raise FormatError("malformed part header: the segment size does not match the length of the part")
    rest = b""
    if record:
        if size or not flags & 1 or record > TAG_SPACE - TAG:
            raise FormatError("malformed part header: a record is not allowed here")
        rest = read_exactly(src, OVERHEAD - PART_PREFIX)
    key_id = check_key_id(names[:k].decode("latin-1"))
    return Part(version, number, size, flags & 1 == 1, flags & 2 == 2, segment, upload, key_id, names[k : k + w], prefix[PART_HEADER:], rest[TAG : TAG + record], mac_), rest


def parse_record(b: bytes, version: int) -> Record:
    src = Bytes(b)
    try:
        parts, kind, c, digest = struct.unpack(">HBB32s", read_exactly(src, 36))
        sealed_sum = read_exactly(src, c)
        count, odd = divmod(len(b) - 36 - c, 12)
        if version > 1:
            (count,), odd = struct.unpack(">H", read_exactly(src, 2)), 0
        runs = [struct.unpack(">HHQ", read_exactly(src, 12)) for _ in range(count)]
        record = Record(parts, kind, sealed_sum, digest, runs)
        if version > 1:
            tags = read_exactly(src, 1)[0]
            odd |= tags > 2
            record.tags_digest = read_exactly(src, 32) if tags else b""
            record.tags = [read_exactly(src, 4) for _ in range(parts)] if tags == 2 else None
    except FormatError:
        raise FormatError("malformed record") from None
    if odd or src.read(1) or kind > 2 or (kind == 0) != (c == 0) or not 1 <= parts <= 9999:
        raise FormatError("malformed record")
    return record


def check_record(record: Record, parts: list[Part]) -> None:
    """Checks a record against the parts before it, in order."""
    layout = [(p.number, p.size) for p in parts]
    digest = hashlib.sha256(b"".join(struct.pack(">HQ", *p) for p in layout)).digest()
    if record.parts != len(parts) or record.digest != digest:
        raise FormatError("authentication failed: the parts do not match the record")
    if record.runs:
        named = [(first + i, length) for first, count, length in record.runs for i in range(count)]
        if named != layout:
            raise FormatError("authentication failed: the parts do not match the runs of the record")
    tags = [p.tag for p in parts]
    if record.tags_digest and record.tags_digest != hashlib.sha256(b"".join(tags)).digest():
        raise FormatError("authentication failed: the record has the tags of other attempts at the parts")
    if record.tags is not None and record.tags != [tag[:4] for tag in tags]:
        raise FormatError("authentication failed: the list of the record has the tags of other attempts at the parts")


@dataclass
class Multipart:
    """Reads a multipart object from its first byte to its last."""

    src: BinaryIO
    bucket: str
    key: bytes
    unwrap: Unwrap
    # Returns the object's last 9,216 bytes. They are needed if part numbers
    # have gaps: the record shows whether the upload had the same gaps. If tail
    # is None, a gap is an error.
    tail: Callable[[], bytes] | None = None
    sealed: "SealedUpload | None" = None  # the sealed metadata of the object, from open_upload
    checksum: tuple[int, dict[int, bytes]] | None = None  # type (section 8.4) and digests by id; set at the end of the object

    def __iter__(self) -> Iterator[bytes]:
        final, ahead = False, []
        first: dict[int, Part] = {}  # of each version
        numbers: list[int] | None = None  # from the record, if the numbers have gaps
        while prefix := self.next_prefix():
            if final:
                raise FormatError("a part follows the final part")
            part, rest = parse_part(prefix, self.src)
            dek = self.unwrap(part.key_id, part.wrapped_dek)
            part.verify(dek, self.bucket, self.key)
            self.check_upload(part, first)
            final = part.final
            if part.record:
                self.end(part, dek, rest, ahead)
                continue
            if part.number != len(ahead) + 1:
                numbers = numbers or self.recorded_numbers()
                if numbers and (len(ahead) >= len(numbers) or numbers[len(ahead)] != part.number):
                    raise FormatError(f"a part is missing before part {part.number}")
            ahead.append(part)
            yield from open_stream(self.src, dek, part.header, part.size, part.segment)
            if any(read_exactly(self.src, OVERHEAD + part.size - PART_HEADER - part.stream)):
                raise FormatError(f"the fill of part {part.number} is not zero")
        if not final:
            raise FormatError("the last part is missing")
        if self.checksum is None and [p.number for p in ahead] != list(range(1, len(ahead) + 1)):
            raise FormatError("gaps in the part numbers of an object without a record")

    def check_upload(self, part: Part, first: dict[int, Part]) -> None:
        """Checks that a part goes with the others, and with the metadata."""
        same = first.setdefault(part.version, part)
        if part.upload != same.upload or any(part.store_id != other.store_id for other in first.values()):
            raise FormatError(f"part {part.number} is from a different upload")
        if part.version == 1:
            return
        if part.sealed != (self.sealed is not None):
            raise FormatError(f"part {part.number} and the metadata disagree on whether the metadata is sealed")
        if self.sealed and part.random != self.sealed.random:
            raise FormatError(f"part {part.number} is from a different upload than the sealed metadata")

    def next_prefix(self) -> bytes:
        first = self.src.read(1)
        return first + read_exactly(self.src, PART_PREFIX - 1) if first else b""

    def end(self, part: Part, dek: bytes, rest: bytes, ahead: list[Part]) -> None:
        """Checks the part that CompleteMultipartUpload appended."""
        for _ in open_stream(Bytes(rest), dek, part.header, 0):
            pass
        if any(rest[TAG + len(part.record) :]):
            raise FormatError("the fill after the record is not zero")
        record = parse_record(part.record, part.version)
        check_record(record, ahead)
        if ahead and part.number <= ahead[-1].number:
            raise FormatError("authentication failed: the number of the appended part")
        digests = open_checksums(record.sealed_sum, dek)
        if len(digests) != (record.kind > 0):
            raise FormatError("malformed record: it must have exactly one digest")
        self.checksum = (record.kind, digests)

    def recorded_numbers(self) -> list[int]:
        """Returns the part numbers in the record at the end of the object.

        The list is empty if the record has only their digest.
        """
        tail = self.tail() if self.tail else b""
        if len(tail) != OVERHEAD or tail[:8] != b"cmekpart":
            raise FormatError("a part is missing: no record explains the gap")
        part, _ = parse_part(tail[:PART_PREFIX], Bytes(tail[PART_PREFIX:]))
        if not part.record:
            raise FormatError("a part is missing: no record explains the gap")
        part.verify(self.unwrap(part.key_id, part.wrapped_dek), self.bucket, self.key)
        return [first + i for first, count, _ in parse_record(part.record, part.version).runs for i in range(count)]


class Bytes:
    """A stream of bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def read(self, n: int = -1) -> bytes:
        end = len(self.data) if n < 0 else self.at + n
        piece, self.at = self.data[self.at : end], min(end, len(self.data))
        return piece


# Section 9: wrapped data keys with more than the ciphertext of the KMS.

COMPOUND = b"cmekwrap"
SSE_C = "sse-c"


@dataclass
class WrappedKey:
    salt: bytes | None
    context: dict[str, str]
    blob: bytes


def named(label: bytes, bucket: str, key: bytes) -> bytes:
    name = bucket.encode()
    return label + struct.pack(">I", len(name)) + name + struct.pack(">I", len(key)) + key


def parse_wrapped(wrapped: bytes) -> WrappedKey:
    if not wrapped.startswith(COMPOUND):
        return WrappedKey(None, {}, wrapped)
    src = Bytes(wrapped[len(COMPOUND) :])
    try:
        version, flags = read_exactly(src, 2)
        if version != 1 or not flags or flags & ~3:
            raise FormatError("version or flags")
        salt = read_exactly(src, 32) if flags & 1 else None
        context = read_context(src) if flags & 2 else {}
    except (FormatError, UnicodeDecodeError) as e:
        raise FormatError(f"malformed wrapped data key: {e}") from None
    blob = src.read(len(wrapped))
    if not blob:
        raise FormatError("malformed wrapped data key: no ciphertext of the KMS")
    return WrappedKey(salt, context, blob)


def read_context(src: BinaryIO) -> dict[str, str]:
    def text() -> str:
        return read_exactly(src, struct.unpack(">H", read_exactly(src, 2))[0]).decode()

    count = struct.unpack(">H", read_exactly(src, 2))[0]
    entries = [(text(), text()) for _ in range(count)]
    names = [name.encode() for name, _ in entries]
    if not entries or names != sorted(set(names)) or b"" in names or {b"bucket", b"key"} & set(names):
        raise FormatError("encryption context")
    return dict(entries)


def unwrapper(ask: Ask, bucket: str, key: bytes, customer_key: bytes | None = None) -> Unwrap:
    """Returns a function that unwraps the DEKs of one object."""

    def unwrap(key_id: str, wrapped: bytes) -> bytes:
        if key_id == SSE_C:
            return unwrap_by_customer(customer_key, wrapped, bucket, key)
        w = parse_wrapped(wrapped)
        context = {"bucket": bucket} if w.salt else {"bucket": bucket, "key": key.decode()}
        got = ask(key_id, w.blob, context | w.context)
        return derive(got, w.salt, named(b"cmekproxy v1 bucket key", bucket, key)) if w.salt else got

    return unwrap


def unwrap_by_customer(customer_key: bytes | None, wrapped: bytes, bucket: str, key: bytes) -> bytes:
    if customer_key is None:
        raise FormatError("the object is encrypted under a customer key (SSE-C): give --sse-customer-key FILE")
    if len(wrapped) != 81 or wrapped[0] != 1:
        raise FormatError("malformed envelope: a data key wrapped by a customer key")
    kek = AESGCM(derive(customer_key, wrapped[1:33], named(b"cmekproxy v1 sse-c", bucket, key)))
    try:
        return kek.decrypt(bytes(12), wrapped[33:], None)
    except InvalidTag:
        raise FormatError("wrong customer key") from None


# Section 10: several keys, and recovery keys.

BUNDLE = b"cmekkeys"
ONE, ANY, ALL = 0, 1, 2
RECOVERY_WRAP = 88


@dataclass
class Bundle:
    scheme: int
    wraps: list[tuple[str, bytes]]  # KMS key id ("" for ONE), blob
    recovery: list[bytes]


def parse_bundle(blob: bytes) -> Bundle:
    src = Bytes(blob)
    if read_exactly(src, 8) != BUNDLE:
        raise FormatError("not a bundle of wrapped keys")

    def field() -> bytes:
        return read_exactly(src, struct.unpack(">H", read_exactly(src, 2))[0])

    version, scheme, wraps, recovery = read_exactly(src, 4)
    limits = {ONE: (1, 1), ANY: (1, 4), ALL: (2, 4)}
    if version != 1 or scheme not in limits or not limits[scheme][0] <= wraps <= limits[scheme][1] or recovery > 2:
        raise FormatError("malformed bundle of wrapped keys")
    b = Bundle(scheme, [(field().decode("latin-1"), field()) for _ in range(wraps)], [read_exactly(src, RECOVERY_WRAP) for _ in range(recovery)])
    ids = [key_id for key_id, _ in b.wraps]
    if src.read(1) or len(set(ids)) != len(ids) or any(not text or text.startswith(BUNDLE) for _, text in b.wraps):
        raise FormatError("malformed bundle of wrapped keys")
    if scheme == ONE and (ids != [""] or not recovery):
        raise FormatError("malformed bundle of wrapped keys")
    if scheme != ONE:
        for key_id in ids:
            check_key_id(key_id)
    return b


def together(ask: Ask) -> Ask:
    """Returns an Ask that also takes bundles, whose keys ask can unwrap."""

    def both(key_id: str, blob: bytes, context: dict[str, str]) -> bytes:
        if not blob.startswith(BUNDLE):
            if key_id.startswith(("all-of:", "any-of:")):
                raise FormatError("one key has wrapped what several must wrap")
            return ask(key_id, blob, context)
        b = parse_bundle(blob)
        wanted = ALL if key_id.startswith("all-of:") else ANY if key_id.startswith("any-of:") else ONE
        if b.scheme != wanted:
            raise FormatError("the wraps belong together in another way than the key id says")
        if b.scheme == ONE:
            return ask(key_id, b.wraps[0][1], context)
        if b.scheme == ANY:
            return first_of(ask, b.wraps, context)
        dek = bytes(32)
        for member, text in b.wraps:
            dek = bytes(x ^ y for x, y in zip(dek, ask(member, text, context), strict=True))
        return dek

    return both


def first_of(ask: Ask, wraps: list[tuple[str, bytes]], context: dict[str, str]) -> bytes:
    failures = []
    for member, text in wraps:
        try:
            return ask(member, text, context)
        except Exception as e:  # of any KMS: the next one may work
            failures.append(f"{member}: {e}")
    raise FormatError("no key unwraps the data key: " + "; ".join(failures))


def recovery_key(text: str) -> Ask:
    """Returns an Ask that unwraps with a recovery private key."""
    prefix = "cmekproxy-recovery-private-v1:"
    if not text.startswith(prefix):
        raise FormatError("not a recovery private key")
    private = X25519PrivateKey.from_private_bytes(base64.b64decode(text[len(prefix) :].strip(), validate=True))
    public = private.public_key().public_bytes_raw()
    own = hashlib.sha256(b"cmekproxy recovery key v1" + public).digest()[:8]

    def ask(key_id: str, blob: bytes, context: dict[str, str]) -> bytes:
        wraps = parse_bundle(blob).recovery if blob.startswith(BUNDLE) else []
        for wrap in wraps:
            if wrap[:8] == own:
                return hpke_open(private, public, wrap[8:40], wrap[40:], b"cmekproxy v2 recovery", context_bytes(context))
        raise FormatError("the data key was not wrapped to this recovery key")

    return ask


def context_bytes(context: dict[str, str]) -> bytes:
    def text(s: str) -> bytes:
        return struct.pack(">Q", len(s.encode())) + s.encode()

    entries = sorted(context.items(), key=lambda e: e[0].encode())
    return b"cmekproxy context v1" + struct.pack(">I", len(entries)) + b"".join(text(name) + text(value) for name, value in entries)


def hpke_open(private: X25519PrivateKey, public: bytes, enc: bytes, sealed: bytes, info: bytes, aad: bytes) -> bytes:
    """Opens RFC 9180 base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, sequence number 0."""
    kem, suite = b"KEM" + struct.pack(">H", 0x20), b"HPKE" + struct.pack(">HHH", 0x20, 1, 2)

    def extract(salt: bytes, suite_id: bytes, label: bytes, ikm: bytes) -> bytes:
        return hmac.new(salt or bytes(32), b"HPKE-v1" + suite_id + label + ikm, hashlib.sha256).digest()

    def expand(prk: bytes, suite_id: bytes, label: bytes, more: bytes, length: int) -> bytes:
        return HKDFExpand(SHA256(), length, struct.pack(">H", length) + b"HPKE-v1" + suite_id + label + more).derive(prk)

    try:
        dh = private.exchange(X25519PublicKey.from_public_bytes(enc))
    except ValueError:
        raise FormatError("authentication failed: the recovery wrap") from None
    shared = expand(extract(b"", kem, b"eae_prk", dh), kem, b"shared_secret", enc + public, 32)
    schedule = b"\x00" + extract(b"", suite, b"psk_id_hash", b"") + extract(b"", suite, b"info_hash", info)
    secret = extract(shared, suite, b"secret", b"")
    key, nonce = expand(secret, suite, b"key", schedule, 32), expand(secret, suite, b"base_nonce", schedule, 12)
    try:
        return AESGCM(key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise FormatError("authentication failed: the recovery wrap") from None


# Section 11: sealed metadata.

META_BLOCK = 64
CONTENT_HEADERS = ("cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires")
USER_METADATA = "x-amz-meta-"


@dataclass
class SealedUpload:
    """The metadata of a multipart object, after its MAC has verified."""

    random: bytes  # of the upload
    headers: dict[str, bytes]


def open_upload(metadata: dict[str, str], bucket: str, key: bytes, unwrap: Unwrap) -> SealedUpload | None:
    """Opens the sealed metadata of a multipart object; None if it is not sealed."""
    own = own_entries(metadata)
    if not is_multipart(metadata) or "cmek-meta" not in own:
        return None
    key_id, wrapped = own["cmek-key"], canonical(own, "cmek-dek", 1, 1024)
    sealed, random, want = canonical(own, "cmek-meta", 1, MAX_META), canonical(own, "cmek-upload", 16, 16), canonical(own, "cmek-mac", 32, 32)
    if not any(random):
        raise FormatError("malformed metadata: no random bytes of the upload")
    dek = unwrap(key_id, wrapped)
    check_mac(dek, [b"\x02", b"\x01", key_id.encode(), wrapped, b"", b"", b"", b"upload", bucket.encode(), key, sealed, random], want)
    return SealedUpload(random, open_metadata(sealed, dek))


def sealed_headers(metadata: dict[str, str], bucket: str, key: bytes, unwrap: Unwrap) -> dict[str, bytes] | None:
    """Returns the sealed headers of an object; None if its metadata is not sealed."""
    if is_multipart(metadata):
        upload = open_upload(metadata, bucket, key, unwrap)
        return upload.headers if upload else None
    e = parse_envelope(metadata)
    if not e.sealed_meta:
        return None
    dek = unwrap(e.key_id, e.wrapped_dek)
    e.verify(dek, bucket, key)
    return open_metadata(e.sealed_meta, dek)


def open_metadata(sealed: bytes, dek: bytes) -> dict[str, bytes]:
    """Opens sealed metadata whose MAC has verified."""
    try:
        text = AESGCM(derive(dek, None, b"cmekproxy v2 metadata")).decrypt(sealed[:12], sealed[12:], None)
    except (InvalidTag, ValueError):
        raise FormatError("authentication failed: the sealed metadata") from None
    try:
        headers = parse_headers(Bytes(text))
    except FormatError as e:
        raise FormatError(f"malformed sealed metadata: {e}") from None
    if "content-type" not in headers:
        headers["content-type"] = b"binary/octet-stream"
    return headers


def parse_headers(src: "Bytes") -> dict[str, bytes]:
    def field() -> bytes:
        return read_exactly(src, struct.unpack(">H", read_exactly(src, 2))[0])

    headers: dict[str, bytes] = {}
    used, last = 0, b""
    while name := field():
        if name <= last or not is_header(name):
            raise FormatError(f"the name {name!r}")
        headers[name.decode()] = value = field()
        if any(byte in value for byte in b"\r\n\0"):
            raise FormatError(f"the value of {name!r}")
        used, last = used + 4 + len(name) + len(value), name
    if any(src.read()) or len(src.data) != -(-(used + 2) // META_BLOCK) * META_BLOCK:
        raise FormatError("the zeros at the end")
    return headers


def is_header(name: bytes) -> bool:
    if any(not 0x21 <= c <= 0x7E or 0x41 <= c <= 0x5A for c in name):
        return False
    text = name.decode()
    return text in CONTENT_HEADERS or (text.startswith(USER_METADATA) and text != USER_METADATA and not text.startswith(USER_METADATA + "cmek-"))

"""Unwraps data keys with a key file of provider local: section 5 of docs/format.md."""

import base64
import hashlib
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from format import Ask, FormatError


def local_key(path: str) -> Ask:
    """Returns an Ask that unwraps with a key file."""
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
        raise FormatError(f"{path} is not a complete key file of provider local")
    lines = [line.split(" ") for line in body.splitlines()]
    return lines[1][1], {int(line[1]): base64.b64decode(line[4], validate=True) for line in lines[3:] if line[4] != "-"}


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">Q", len(data)) + data

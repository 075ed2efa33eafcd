"""Standard Webhooks signatures, for what is sent and for what is received."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence

WINDOW_S = 300
MIN_SECRET_BYTES = 24
PREFIX = "whsec_"
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"

_MAX_SIGNATURES = 16


class SecretInvalid(ValueError):
    """The secret can't be used; says what is allowed, never the secret itself."""


class SignatureInvalid(ValueError):
    """The message is not proven to come from someone who knows the secret, or it is too old."""


def key_of(secret: str) -> bytes:
    """The key behind `whsec_<base64>`. Raises SecretInvalid."""
    if not secret.startswith(PREFIX):
        raise SecretInvalid(f"must begin with {PREFIX}, followed by base64 of at least {MIN_SECRET_BYTES} bytes")
    try:
        encoded = secret.removeprefix(PREFIX).rstrip("=")
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise SecretInvalid(f"must be base64 after {PREFIX}") from None
    if len(key) < MIN_SECRET_BYTES:
        raise SecretInvalid(f"must hold at least {MIN_SECRET_BYTES} bytes; this one has {len(key)}")
    return key


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the signature."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key_of(secret), signed, hashlib.sha256).digest()).decode()


def headers(secret: str, message_id: str, body: bytes, *, now: float | None = None) -> dict[str, str]:
    """The three headers of one attempt to deliver `body`; `now` in Unix seconds."""
    timestamp = int(time.time() if now is None else now)
    return {ID: message_id, TIMESTAMP: str(timestamp), SIGNATURE: sign(secret, message_id, timestamp, body)}


def verify(
    secrets: Sequence[str],
    received: Mapping[str, str],
    body: bytes,
    *,
    now: float | None = None,
    window_s: int = WINDOW_S,
) -> str:
    """The message's id. `received` are the headers, by lower-case name. Raises SignatureInvalid, whatever is wrong."""
    message_id = received.get(ID, "")
    stamp = received.get(TIMESTAMP, "")
    given = received.get(SIGNATURE, "").split(" ")[:_MAX_SIGNATURES]
    if not message_id or not stamp or not given[0]:
        raise SignatureInvalid(f"the headers {ID}, {TIMESTAMP} and {SIGNATURE} are needed")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12):
        raise SignatureInvalid(f"{TIMESTAMP} must be Unix seconds")
    timestamp = int(stamp)
    if abs((time.time() if now is None else now) - timestamp) > window_s:
        raise SignatureInvalid(f"{TIMESTAMP} is more than {window_s} s away from now")
    try:
        message_id.encode()
    except UnicodeEncodeError:
        raise SignatureInvalid(f"{ID} must be text") from None
    matched = False
    for secret in secrets:
        expected = sign(secret, message_id, timestamp, body).encode()
        for candidate in given:
            # Every candidate is compared with every secret, so that the time taken tells nothing.
            matched |= hmac.compare_digest(expected, candidate.encode("utf-8", "replace"))
    if not matched:
        raise SignatureInvalid("no signature matches a known secret")
    return message_id

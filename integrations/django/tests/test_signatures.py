"""Standard Webhooks signatures. The golden cases are in test_golden.py."""

from __future__ import annotations

import base64
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from error_logging import signatures
from error_logging.signatures import SecretInvalid, SignatureInvalid

# The vector of the specification's own libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID, STAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
OTHER = "whsec_" + base64.b64encode(b"another secret of 32 bytes......").decode()


def message(**changed: str) -> dict[str, str]:
    return {
        "webhook-id": ID, "webhook-timestamp": str(STAMP), "webhook-signature": SIGNATURE,
        **{name.replace("_", "-"): text for name, text in changed.items()},
    }  # fmt: skip


def test_the_golden_vector() -> None:
    assert signatures.sign(SECRET, ID, STAMP, BODY) == SIGNATURE
    assert signatures.headers(SECRET, ID, BODY, now=STAMP + 0.9) == message()
    assert signatures.verify([SECRET], message(), BODY, now=STAMP) == ID


@pytest.mark.parametrize("changed", [
    {"webhook_id": "msg_other"}, {"webhook_timestamp": str(STAMP + 1)}, {"webhook_signature": SIGNATURE.swapcase()},
    {"webhook_signature": SIGNATURE.removeprefix("v1,")}, {"webhook_signature": "v1a," + SIGNATURE[3:]},
])  # fmt: skip
def test_whatever_was_changed_is_noticed(changed: dict[str, str]) -> None:
    with pytest.raises(SignatureInvalid, match="no signature matches"):
        signatures.verify([SECRET], message(**changed), BODY, now=STAMP)


def test_another_body_is_noticed() -> None:
    with pytest.raises(SignatureInvalid):
        signatures.verify([SECRET], message(), BODY + b" ", now=STAMP)


@pytest.mark.parametrize("away", [301, -301])
def test_it_must_be_of_these_five_minutes(away: int) -> None:
    with pytest.raises(SignatureInvalid, match="300 s away"):
        signatures.verify([SECRET], message(), BODY, now=STAMP + away)
    signatures.verify([SECRET], message(), BODY, now=STAMP + (300 if away > 0 else -300))


def test_secrets_rotate_on_either_side() -> None:
    assert signatures.verify([OTHER, SECRET], message(), BODY, now=STAMP) == ID
    both = f"{signatures.sign(OTHER, ID, STAMP, BODY)} {SIGNATURE}"
    assert signatures.verify([SECRET], message(webhook_signature=both), BODY, now=STAMP) == ID


def test_no_secret_admits_nothing() -> None:
    with pytest.raises(SignatureInvalid):
        signatures.verify([], message(), BODY, now=STAMP)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_every_header_is_needed(missing: str) -> None:
    with pytest.raises(SignatureInvalid, match="are needed"):
        signatures.verify([SECRET], {**message(), missing: ""}, BODY, now=STAMP)


@pytest.mark.parametrize("stamp", ["soon", "-1", "1.5", "1e9", " 1614265330", "١٦١٤٢٦٥٣٣٠", "9" * 400])
def test_a_timestamp_is_unix_seconds(stamp: str) -> None:
    with pytest.raises(SignatureInvalid):
        signatures.verify([SECRET], message(webhook_timestamp=stamp), BODY, now=STAMP)


def test_the_time_taken_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate is compared with every secret, in constant time, also after one has matched."""
    compared: list[bytes] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (compared.append(b), real(a, b))[1])
    signatures.verify([SECRET, OTHER], message(webhook_signature=f"{SIGNATURE} v1,AAAA v1,BBBB"), BODY, now=STAMP)
    assert len(compared) == 2 * 3


def test_a_thousand_signatures_are_not_all_tried() -> None:
    with pytest.raises(SignatureInvalid):
        signatures.verify(
            [SECRET], message(webhook_signature=" ".join(["v1,AA"] * 1000 + [SIGNATURE])), BODY, now=STAMP
        )


ANY = st.text(alphabet=st.characters(), max_size=60)


@given(message_id=ANY, stamp=ANY | st.just(str(STAMP)), given_signature=ANY, body=st.binary(max_size=100))
def test_malformed_input_is_refused_and_nothing_else(
    message_id: str, stamp: str, given_signature: str, body: bytes
) -> None:
    received = {"webhook-id": message_id, "webhook-timestamp": stamp, "webhook-signature": given_signature}
    with pytest.raises(SignatureInvalid):
        signatures.verify([SECRET], received, body, now=STAMP)


def test_a_lone_surrogate_is_refused_too() -> None:
    with pytest.raises(SignatureInvalid):
        signatures.verify([SECRET], message(webhook_id="\ud800"), BODY, now=STAMP)


@pytest.mark.parametrize(("secret", "says"), [
    ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "must begin with whsec_"),
    ("whsec_not base64!", "must be base64"),
    ("whsec_é", "must be base64"),
    ("whsec_" + base64.b64encode(b"x" * 23).decode(), "at least 24 bytes; this one has 23"),
    ("whsec_", "at least 24 bytes"),
])  # fmt: skip
def test_a_weak_secret_is_named_but_not_told(secret: str, says: str) -> None:
    with pytest.raises(SecretInvalid, match=says) as invalid:
        signatures.key_of(secret)
    body = secret.removeprefix("whsec_")
    assert not body or body not in str(invalid.value)


def test_padding_may_be_missing() -> None:
    key = b"k" * 25
    padded = "whsec_" + base64.b64encode(key).decode()
    assert signatures.key_of(padded) == signatures.key_of(padded.rstrip("=")) == key

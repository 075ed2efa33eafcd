"""Signatures: Standard Webhooks, both ways."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime

from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook

from upright.config import MIN_SECRET_BYTES, Settings
from upright.errors import ConfigurationError, SignatureRefused

DEFAULT_TENANT = "default"
MAX_DELIVERY_ID = 200

_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")


class Keyring:
    """The secrets of every tenant."""

    def __init__(self, secrets: Mapping[str, list[SecretStr]]) -> None:
        """Raises ConfigurationError for a secret that is malformed or too short."""
        self._webhooks = {
            tenant: [_webhook(tenant, secret.get_secret_value()) for secret in several]
            for tenant, several in secrets.items()
            if several
        }

    @classmethod
    def of(cls, settings: Settings) -> Keyring:
        secrets = dict(settings.tenants)
        secrets[DEFAULT_TENANT] = [*settings.secrets, *secrets.get(DEFAULT_TENANT, [])]
        return cls(secrets)

    @property
    def tenants(self) -> list[str]:
        return sorted(self._webhooks)

    def verify(self, tenant: str, headers: Mapping[str, str], body: bytes) -> str:
        """The delivery's id. Raises SignatureRefused, whatever is wrong: the reason would help a forger."""
        signed = {name: headers.get(name, "") for name in _HEADERS}
        delivery_id = signed["webhook-id"]
        if not 0 < len(delivery_id) <= MAX_DELIVERY_ID or not (delivery_id.isascii() and delivery_id.isprintable()):
            raise SignatureRefused
        stamp = signed["webhook-timestamp"]
        if not (stamp.isascii() and stamp.isdigit()):  # the package reads other scripts' digits and floats too
            raise SignatureRefused
        for webhook in self._webhooks.get(tenant, ()):
            try:
                webhook.verify(body, signed, json_parse=False)
            except Exception:  # noqa: S112  # malformed input makes the package raise unrelated exceptions
                continue
            return delivery_id
        raise SignatureRefused

    def sign(self, tenant: str, delivery_id: str, body: bytes) -> dict[str, str]:
        """Headers of an answer, signed with every secret: while they rotate, the other side may have only one."""
        now = datetime.now(UTC)
        signatures = [webhook.sign(delivery_id, now, body.decode()) for webhook in self._webhooks[tenant]]
        return {
            "webhook-id": delivery_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def _webhook(tenant: str, secret: str) -> Webhook:
    # The package takes a secret of one byte.
    wanted = f"must be whsec_ and the base64 of at least {MIN_SECRET_BYTES} bytes"
    if not secret.startswith("whsec_"):
        raise ConfigurationError(f"A secret of tenant {tenant!r} {wanted}.")
    encoded = secret.removeprefix("whsec_").rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(f"A secret of tenant {tenant!r} {wanted}; this is no base64.") from None
    if len(key) < MIN_SECRET_BYTES:
        raise ConfigurationError(f"A secret of tenant {tenant!r} {wanted}; this one has {len(key)}.")
    return Webhook(key)

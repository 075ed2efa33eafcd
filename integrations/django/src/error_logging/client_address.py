"""The address of a request's client, by a rule that a client can't forge: UPRIGHT_TRUSTED_PROXIES."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

from django.http import HttpRequest

from error_logging.conf import current


def of(request: HttpRequest) -> str:
    """Each trusted proxy adds one entry at the end of X-Forwarded-For; whatever stands before theirs, anyone may have
    written. An IPv6 client is told by its /64, since it has all of that to itself."""
    peer = str(request.META.get("REMOTE_ADDR") or "")
    proxies = current().trusted_proxies
    if proxies == 0:
        return _told(peer) or peer or "unknown"
    entries = [one.strip() for one in str(request.META.get("HTTP_X_FORWARDED_FOR") or "").split(",") if one.strip()]
    # Fewer entries than proxies: it did not come through them.
    named = _told(entries[-proxies]) if len(entries) >= proxies else None
    return named or _told(peer) or peer or "unknown"


def _told(text: str) -> str | None:
    try:
        found = ip_address(_without_port(text))
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ip_network((found, 64), strict=False))
    return str(found)


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text

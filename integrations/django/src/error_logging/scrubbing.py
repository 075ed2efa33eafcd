"""Secrets and personal data taken out of what leaves the process or is stored, by the name they stand under and by
what they look like.

What is scrubbed too much costs a hint; what is scrubbed too little can't be taken back: in doubt, it goes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, unquote_plus

from django.db.models import Manager, Model, QuerySet

from error_logging.conf import current

SCRUBBED = "[scrubbed]"
MAX_TEXT = 8_000
"""Characters of one text that are looked at; the rest is cut off."""

_MAX_DEPTH = 6
_MAX_ITEMS = 100

_SENSITIVE = re.compile(
    r"passw|passphrase|pwd|secret|token|apikey|accesskey|privatekey|encryptionkey|signingkey|authorization|cookie"
    r"|session(?:id|key)?$|csrf|xsrf|credential|ssn|socialsecurity|cardnumber|creditcard|ccnumber|cvv|cvc|iban|email"
    r"|databaseurl|redisurl|brokerurl|dsn|connectionstring|connstr|signature|otp$|^pin$|^auth$|^pan$"
)
_WORDS = (
    r"passw(?:or)?d|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|authorization|cookie"
    r"|session[_-]?id|session[_-]?key|csrf|xsrf|credentials?|ssn|social[_-]?security|card[_-]?number|credit[_-]?card"
    r"|cvv|cvc|database[_-]?url|redis[_-]?url|broker[_-]?url|dsn"
)
_Rule = tuple[re.Pattern[str], str]

# A rule begins with something rare, so that a long text without secrets is scanned once and without backtracking.
_RULES: tuple[_Rule, ...] = (
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}-----|\Z)", re.S), SCRUBBED),
    # postgresql://user:password@host, also where the password holds an @.
    (re.compile(r"(://)[^\s/?#'\"<>]{1,500}@"), rf"\1{SCRUBBED}@"),
    (re.compile(r"(?i)(authorization[\"']?\s{0,3}[:=]\s{0,3})(?:\"[^\"]*\"|'[^']*'|[^\r\n,;\"'}]+)"), rf"\1{SCRUBBED}"),
    # A header of many cookies is one secret.
    (re.compile(r"(?i)(cookie[\"']?\s{0,3}:\s{0,3})(?:\"[^\"]*\"|'[^']*'|[^\r\n,\"'}]+)"), rf"\1{SCRUBBED}"),
    (re.compile(r"(?i)(\bbearer\s{1,3})(?=[^\s,;]*[\d._=-])[^\s,;\"']{6,}"), rf"\1{SCRUBBED}"),
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?"), SCRUBBED),
    (
        re.compile(
            r"\b(?:whsec_[A-Za-z0-9+/=]{8,}|(?:sk|pk|rk)_(?:live|test)_\w{8,}|gh[pousr]_\w{20,}|github_pat_\w{20,}"
            r"|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|glpat-[\w-]{15,})"
        ),
        SCRUBBED,
    ),
    # PostgreSQL tells the values of a row that broke a constraint.
    (
        re.compile(r"(Key \([^)\n]{1,200}\)=\().*?(\)(?= (?:already|is|conflicts|was|existing)|\.?$))", re.M),
        rf"\1{SCRUBBED}\2",
    ),
    (re.compile(r"(Failing row contains \()[^\n]*"), rf"\1{SCRUBBED})"),
    (
        # password=…, "token": "…", client_secret => …, ?access_token=…&
        re.compile(
            rf"(?i)((?:{_WORDS})[\w.-]{{0,40}}[\"']?\]?\s{{0,3}}(?:=>|[=:])\s{{0,3}})"
            r"(?!\[scrubbed\])(?:b?\"(?:[^\"\\]|\\.)*\"|b?'(?:[^'\\]|\\.)*'|[^\s,;&\"'})\]]+)"
        ),
        rf"\1{SCRUBBED}",
    ),
    (re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}(?:@|%40)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+"), SCRUBBED),
    (re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), SCRUBBED),
)
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]*\d)")


def text(value: str, *, most: int = MAX_TEXT) -> str:
    """The text without secrets, storable anywhere (no NUL, no lone surrogates), at most `most` characters long."""
    cut = storable(value[:most])
    for pattern, replacement in _RULES:
        cut = pattern.sub(replacement, cut)
    cut = _CARD.sub(_card, cut)
    for pattern in current().scrub_patterns:
        cut = pattern.sub(SCRUBBED, cut)
    return cut[:most]


def storable(value: str) -> str:
    """PostgreSQL takes no NUL, and UTF-8 no lone surrogates."""
    if value.isascii() and "\x00" not in value:
        return value
    return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def sensitive(key: str) -> bool:
    """Whether what stands under this name is scrubbed, whatever it looks like."""
    plain = re.sub(r"[^a-z0-9]", "", key[:200].lower())
    if _SENSITIVE.search(plain):
        return True
    return any((extra := re.sub(r"[^a-z0-9]", "", name.lower())) and extra in plain for name in current().scrub_keys)


def value(given: object, *, most: int = 2_000, depth: int = 0) -> object:
    """Plain JSON of any object, without secrets; texts at most `most` characters long, depth and width bounded."""
    if given is None or isinstance(given, bool):
        return given
    if isinstance(given, int):
        # A card number may arrive as a number, and JSON numbers past 64 bits are trouble everywhere.
        as_text = text(str(given)) if abs(given) < 10**40 else SCRUBBED
        return given if as_text == str(given) and abs(given) < 2**63 else as_text
    if isinstance(given, float):
        return given if math.isfinite(given) else str(given)
    if isinstance(given, str):
        return text(given, most=most)
    if depth >= _MAX_DEPTH:
        return "…"
    if isinstance(given, Mapping):
        return _mapping(given, most, depth)
    if isinstance(given, (list, tuple, set, frozenset)):
        return [value(inner, most=most, depth=depth + 1) for inner in islice(given, _MAX_ITEMS)]
    if isinstance(given, (bytes, bytearray, memoryview)):
        return f"{len(given)} bytes"
    return text(_shown(given), most=most)


def _mapping(given: Mapping[Any, Any], most: int, depth: int) -> object:
    try:
        pairs = list(islice(given.items(), _MAX_ITEMS))
    except Exception:
        return _named(given)
    plain: dict[str, object] = {}
    for key, inner in pairs:
        name = _shown(key)
        hidden = inner is not None and sensitive(name)
        plain[text(name, most=200)] = SCRUBBED if hidden else value(inner, most=most, depth=depth + 1)
    return plain


def _shown(given: object) -> str:
    """What the object says of itself, but for those that would ask the database for it."""
    if isinstance(given, (QuerySet, Manager)):
        return f"<{type(given).__name__} of {getattr(given.model, '__name__', 'a model')}>"
    if isinstance(given, Model):
        return f"<{type(given).__name__} {given.pk}>"
    try:
        return str(given)
    except Exception:
        return _named(given)


def _named(given: object) -> str:
    return f"<{type(given).__name__}>"


def path(given: str, arguments: Mapping[str, object] | None = None) -> tuple[str, bool]:
    """A URL path with its query string, scrubbed, and whether it is still what it was.

    `arguments` are the URL pattern's: what a pattern calls a token is taken out of the path.
    """
    route, mark, query = given.partition("?")
    scrubbed = _route(route, arguments or {})
    if mark:
        scrubbed += "?" + "&".join(_parameter(pair) for pair in query.split("&"))
    scrubbed = scrubbed[:2_000]
    return scrubbed, scrubbed == given


def _route(route: str, arguments: Mapping[str, object]) -> str:
    segments = route.split("/")
    hidden = {str(argument) for name, argument in arguments.items() if sensitive(name) and str(argument)}
    kept: list[str] = []
    for segment in segments:
        plain = unquote(segment)
        clean = SCRUBBED if plain in hidden else text(plain)
        kept.append(segment if clean == plain else clean)
    whole = "/".join(kept)
    for argument in hidden:
        # An argument with slashes, or one that is a part of its segment.
        whole = whole.replace(argument, SCRUBBED).replace(quote(argument, errors="replace"), SCRUBBED)
    return whole


def _parameter(pair: str) -> str:
    name, mark, given = pair.partition("=")
    plain_name, plain = unquote_plus(name), unquote_plus(given)
    clean_name = text(plain_name)
    shown = name if clean_name == plain_name else clean_name
    if not mark:
        return shown
    if given and sensitive(plain_name):
        return f"{shown}={SCRUBBED}"
    return f"{shown}={given if _clean(plain) else SCRUBBED}"


def _clean(plain: str) -> bool:
    if text(plain) != plain:
        return False
    # A parameter may hold an address with parameters of its own: ?next=/reset%3Ftoken%3D…
    return (
        not any(sensitive(name) for name, _ in parse_qsl(plain.partition("?")[2], max_num_fields=50))
        if "?" in plain
        else True
    )


def _card(match: re.Match[str]) -> str:
    digits = [int(digit) for digit in match.group() if digit.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    valid = (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1
    return SCRUBBED if valid else match.group()

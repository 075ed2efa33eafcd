"""Which rule fits an error: by the exception's class names, nearest first, the outermost exception before its causes.

A rule names classes either plainly (`OperationalError`) or qualified (`django.db.utils.OperationalError`); the first
name of the error that any rule lists wins, and a qualified name wins over a plain one at the same class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from upright.domain.event import ErrorDetail

Rule = TypeVar("Rule")


def names(error: ErrorDetail) -> Iterator[str]:
    """Names to look up, in order of precedence."""
    chains: Iterable[list[str]] = error.classes or [[error.type]]
    for chain in chains:
        for qualified in chain:
            yield qualified
            plain = qualified.rpartition(".")[2]
            if plain != qualified:
                yield plain


def first_match(error: ErrorDetail, rules: Mapping[str, Rule]) -> tuple[str, Rule] | None:
    """The first of the error's names that is a key of `rules`, with its rule."""
    for name in names(error):
        if name in rules:
            return name, rules[name]
    return None

"""A notice: what people are told, whatever the channel. Each channel renders it in its own way."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

_STYLE = (
    "font: 15px/1.5 -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif; color: #1a1a1a; max-width: 44rem"
)


@dataclass(frozen=True)
class Part:
    """A paragraph, or a list under its title. A line that begins with spaces belongs to the one before it."""

    lines: tuple[str, ...]
    title: str = ""


@dataclass(frozen=True)
class Link:
    label: str
    url: str


@dataclass(frozen=True)
class Notice:
    subject: str
    parts: tuple[Part, ...]
    """The first one says it all in short."""
    links: tuple[Link, ...] = ()

    def opening(self, line: str) -> Notice:
        """The same, with a paragraph after the first one."""
        return replace(self, parts=(*self.parts[:1], Part((line,)), *self.parts[1:]))

    def text(self) -> str:
        shown = ["\n".join(_plain(part)) for part in self.parts]
        if self.links:
            shown.append("\n".join(["More", *(f"  {link.label}: {link.url}" for link in self.links)]))
        return "\n\n".join(shown) + "\n"

    def html(self) -> str:
        """A page that loads nothing: no image, script, font or style from anywhere."""
        title = html.escape(self.subject)
        body = "".join(_marked_up(part) for part in self.parts)
        links = "".join(f'<p><a href="{html.escape(one.url)}">{html.escape(one.label)}</a></p>' for one in self.links)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
            f'<body style="{_STYLE}"><h2>{title}</h2>{body}{links}</body></html>\n'
        )


def _plain(part: Part) -> Iterator[str]:
    if not part.title:
        yield from part.lines
        return
    yield part.title
    yield from (f"  {line}" for line in part.lines)


def _marked_up(part: Part) -> str:
    if not part.title:
        return "".join(f"<p>{_escaped(line)}</p>" for line in part.lines)
    items = "".join(f"<li>{'<br>'.join(map(_escaped, group))}</li>" for group in _grouped(part.lines))
    return f"<h3>{html.escape(part.title)}</h3><ul>{items}</ul>"


def _grouped(lines: Iterable[str]) -> list[list[str]]:
    found: list[list[str]] = []
    for line in lines:
        if line.startswith(" ") and found:
            found[-1].append(line.strip())
        else:
            found.append([line.strip()])
    return found


def _escaped(line: str) -> str:
    return html.escape(line).replace("\n", "<br>")

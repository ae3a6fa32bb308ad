"""HTML as text: every function escapes what it is given; only `Markup` passes unchanged."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

# A figure of the usual width fills its column of the page.
_PIXELS_A_POINT = 1.86
_ID = re.compile(r'(\bid="|href="#|url\(#)')


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *content: str, **attributes: str) -> Markup:
    """`<tag attribute="…">content</tag>`; write `class_` for `class`, and `_` for `-` in other names."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value, quote=True)}"'
        for name, value in attributes.items()
    )
    return Markup(f"<{tag}{named}>{join(content)}</{tag}>")


def join(content: Iterable[str], separator: str = "") -> Markup:
    """All parts one after the other."""
    parts = (part if isinstance(part, Markup) else html.escape(str(part), quote=False) for part in content)
    return Markup(separator.join(parts))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: frozenset[int]) -> Markup:
    """A table that scrolls sideways where the screen is narrow; columns in `left` hold words, the others numbers."""

    def cells(tag: str, values: Sequence[str]) -> list[Markup]:
        return [element(tag, value, **({"class_": "word"} if at in left else {})) for at, value in enumerate(values)]

    head = element("thead", element("tr", *cells("th", header)))
    body = element("tbody", *(element("tr", *cells("td", row)) for row in rows))
    return element("div", element("table", head, body), class_="scroll")


def inline_svg(document: str, name: str, description: str) -> Markup:
    """An SVG document as a part of the page: matplotlib numbers ids anew in every figure, here they get its name."""
    body = document[document.index("<svg") :]
    body = _ID.sub(lambda match: f"{match[0]}{name}-", body)
    # Shown at the width of the page: the size in points goes, the view box stays; a narrow figure is not blown up.
    opening, rest = body.split(">", 1)
    points = re.search(r' width="([\d.]+)pt"', opening)
    widest = f' style="max-width: {float(points[1]) * _PIXELS_A_POINT:.0f}px"' if points else ""
    opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)
    return Markup(f'{opening}{widest} role="img" aria-label="{html.escape(description, quote=True)}">{rest.strip()}')

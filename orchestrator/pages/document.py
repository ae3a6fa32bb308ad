"""One self-contained HTML file: it asks the network for nothing and works from a file."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.pages.markup import Markup, element, join
from orchestrator.pages.stylesheet import CSS


def document(title: str, parts: Sequence[Markup]) -> str:
    """A self-contained page of these parts."""
    # The policy makes the browser enforce what is promised: nothing is loaded, not even an icon.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        element("title", title),
        f"<style>{CSS}</style>",
        "</head>",
        "<body>",
        element("main", join(parts, "\n")),
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(lines)

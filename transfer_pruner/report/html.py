"""Pieces of a page that fetches and runs nothing, whatever the text that it is given.

All text is escaped here; figures are drawn as outlines, so that no name stands in their markup.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:1040px;
margin:2em auto;padding:0 1em}
h1{font-size:1.7em;line-height:1.2}
h2{font-size:1.25em;margin:2em 0 .4em;border-bottom:1px solid #ccc}
.headline{font-size:1.1em;border-left:4px solid #0072b2;padding-left:.8em}
figure{margin:0}figure svg{display:block;width:100%;height:auto;margin-bottom:.8em}
figcaption,.data{font-size:.875em;color:#444}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9em}
th,td{padding:.25em .6em;border-bottom:1px solid #ddd;text-align:left;vertical-align:top;
white-space:pre-wrap;overflow-wrap:anywhere}
th{border-bottom:2px solid #888}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;
white-space:nowrap}
.pairs{font-size:.78em}.pairs th,.pairs td{padding:.2em .35em}.pairs td:last-child{min-width:14em}
.pairs td:nth-child(-n+3){min-width:6.5em}.pairs th{white-space:normal;overflow-wrap:normal}
a{color:#0058a0}
@page{margin:14mm}
@media print{body{margin:0;max-width:none;font-size:11pt}figure,tr,.headline{break-inside:avoid}
h2{break-after:avoid}thead{display:table-header-group}.wide{overflow:visible}}
"""


def page(title: str, sections: Iterable[str]) -> str:
    """Write a whole page; sections are markup, the title is text."""
    # The policy lets nothing be fetched or run, should anything ever slip through.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def section(title: str, body: str) -> str:
    """Put markup under a heading."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    numeric: Iterable[int] = (),
    classes: str = "",
) -> str:
    """Write a table of text; the columns that `numeric` counts are set to the right."""
    right = set(numeric)

    def cells(values: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if at in right else ''}>{escape(str(value))}</{tag}>"
            for at, value in enumerate(values)
        )

    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>" if any(header) else ""
    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table class="{classes}">{head}<tbody>{body}</tbody></table></div>'


def link(folder: str, name: str) -> str:
    """Say where the data of a figure or table is."""
    place = f"{folder}/{name}.csv"
    return f'<p class="data">Data: <a href="{quote(place)}">{escape(place)}</a></p>'


def svg(figure: Figure, prefix: str, label: str) -> str:
    """Draw a figure as markup; prefix keeps its ids apart from those of other figures."""
    from matplotlib import rc_context

    text = io.StringIO()
    # Letters as outlines: the same on every machine, and no task's name stands in the markup.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": prefix}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing)
    svg = re.sub(r"<!--.*?-->", "", text.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :]
    # Several drawings share the page's one space of ids.
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def number(value: float, form: str = "{:,.1f}", missing: str = "not known") -> str:
    """Write a number, or what stands for one that is not known."""
    return form.format(value) if math.isfinite(value) else missing


def encoded(text: str) -> bytes:
    """Encode text as UTF-8, whatever stands in it."""
    # A name may hold half a surrogate pair, which no encoding takes.
    return text.encode("utf-8", "backslashreplace")

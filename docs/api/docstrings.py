"""From the docstrings' reStructuredText to the Markdown that mkdocstrings expects.

The formulas become MathML, which browsers draw by themselves: no script and no network.
"""

from __future__ import annotations

import re
from typing import Any

import griffe
from docutils.utils.math.latex2mathml import tex2mathml

_INLINE = re.compile(r":math:`([^`]+)`")
_BLOCK = re.compile(r"^( *)\.\. math:: (.+(?:\n\1 +\S.*)*)", re.MULTILINE)
_SEVERAL = re.compile(
    r"^(\*{0,2}\w+(?:, \*{0,2}\w+)+)((?: : .*)?\n(?: {4}.*(?:\n|$))+)", re.MULTILINE
)
_BETWEEN_TAGS = re.compile(r"(?<=>)\s+(?=<)")
_LITERAL = re.compile(r"::(?=\n\n +\S)")


class Docstrings(griffe.Extension):
    """Rewrite each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Rewrite the docstring of an object, if it has one."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Turn formulas into MathML and the colons before literal blocks into one.

    Parameters that share a description get one each: griffe would give all the first one's type.
    """
    text = _SEVERAL.sub(_one_each, text)
    text = _BLOCK.sub(lambda found: found[1] + _formula(found[2], "block"), text)
    text = _INLINE.sub(lambda found: _formula(found[1], "inline"), text)
    return _LITERAL.sub(":", text)


def _one_each(found: re.Match[str]) -> str:
    described = found[2].rstrip("\n")
    return "\n".join(name + described for name in found[1].split(", ")) + "\n"


def _formula(tex: str, display: str) -> str:
    math = tex2mathml(" ".join(tex.split()), as_block=display == "block")
    # On one line, and not at its start, where Markdown would end the paragraph.
    tight = _BETWEEN_TAGS.sub("", math)
    return f'<span class="formula">{tight}</span>'

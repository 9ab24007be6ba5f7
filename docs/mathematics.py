"""Writes the formulas of a page as MathML, which browsers draw without any script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)
# A formula that is wider than a telephone can be pushed.
_PUSHED = "overflow-x: auto; overflow-y: hidden"


def on_page_content(content: str, **kwargs: Any) -> str:
    """A hook of mkdocs."""
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(match: re.Match[str]) -> str:
    tex = html.unescape(match["tex"]).strip()
    if match["tag"] == "span":
        return convert(tex)
    # Lines that are aligned are a table to the converter, with small fractions.
    if "{aligned}" in tex:
        tex = tex.replace("{aligned}", "{array}{rl}", 1).replace("{aligned}", "{array}")
        tex = tex.replace(r"\frac", r"\dfrac")
    tex = re.sub(r"\\\\\[.*?\]", r"\\\\", tex)
    return f'<div style="{_PUSHED}">{convert(tex, display="block")}</div>'

"""Put a plot's SVG into the page: texts stay texts, neutral colours become the page's, marks say what they are.

matplotlib writes styles as attributes that the page's policy forbids, and ids that several plots share. Here both are
rewritten, element by element, and whatever isn't known is left out; so nothing from data can become mark-up.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from finetune_bench.reports.document import clean
from finetune_bench.reports.plots.style import BAND, GREY, SETTINGS, short
from finetune_bench.reports.text import visible

# Colours that are no method's and no finding's, as the page's style names them for light and dark.
_NEUTRAL = {
    "#ffffff": "var(--card)",
    "#000000": "var(--ink)",
    "#222222": "var(--ink)",
    "#444444": "var(--quiet)",
    GREY: "var(--quiet)",
    BAND.lower(): "var(--band)",
    str(SETTINGS["grid.color"]).lower(): "var(--line)",
}
_ELEMENTS = {"svg", "g", "defs", "path", "use", "text", "tspan", "clipPath", "rect", "image"}
_GEOMETRY = {"d", "x", "y", "width", "height", "transform", "viewBox", "clip-path", "href", "preserveAspectRatio"}
_LOOK = {
    "fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-dashoffset",
    "stroke-linecap", "stroke-linejoin", "opacity", "text-anchor",
}  # fmt: skip
_SHAPES = {"path", "use"}


def inlined(file: Path, name: str, alt: str, methods: Collection[str]) -> str:
    """Return a plot of matplotlib as an element of the page.

    Args:
        file: The plot.
        name: What its ids begin with; no two plots of a page share it.
        alt: What it shows, for a reader who can't see it.
        methods: Labels; a text that is one of them is linked with what else belongs to that method.
    """
    # This program wrote the file, and matplotlib escapes what comes from data, but for characters that XML forbids.
    content = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "", file.read_text("utf-8"))
    root = ElementTree.fromstring(content)  # noqa: S314
    names = {short(method, longest): clean(method) for method in methods for longest in (48, 36, 24)}
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    children = "".join(_written(child, name, names) for child in root)
    # A point of matplotlib is 4/3 of a pixel, so that texts have the sizes that they were laid out with.
    size = f'width="{4 / 3 * width:.0f}" height="{4 / 3 * height:.0f}" viewBox="0 0 {width:g} {height:g}"'
    return f'<svg class="plot" role="img" aria-label="{html.escape(visible(alt))}" {size}>{children}</svg>'


def _written(element: ElementTree.Element, name: str, names: dict[str, str]) -> str:
    """Return an element and all below it; "" for one that the page has no use for."""
    tag = _local(element.tag)
    if tag not in _ELEMENTS:
        return ""
    told = _told(element)
    if told is not None:
        _tell(element, *told)
    text = html.escape(visible(element.text or "")) if tag in ("text", "tspan") else ""
    attributes = dict(_attributes(element, name))
    if tag == "text" and "".join(element.itertext()).strip() in names:
        attributes["data-method"] = html.escape(visible(names["".join(element.itertext()).strip()]))
    inside = text + "".join(_written(child, name, names) for child in element)
    if title := element.attrib.get("told"):
        inside = f"<title>{html.escape(visible(title))}</title>{inside}"
    written = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<{tag}{written}>{inside}</{tag}>" if inside else f"<{tag}{written}/>"


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _told(element: ElementTree.Element) -> tuple[list[str], list[str]] | None:
    """Return methods and texts of an element's shapes, as `plots.style.tell` put them there; None for none."""
    given = element.attrib.get("id", "")
    if not given.startswith("{"):
        return None
    told: Any = json.loads(given)
    return told["methods"], told["texts"]


def _tell(element: ElementTree.Element, methods: list[str], texts: list[str]) -> None:
    """Give every shape of an element its method and text; where their numbers differ, none gets any."""
    shapes = list(_shapes(element))
    if len(methods) == 1:
        methods, texts = methods * len(shapes), (texts or [""]) * len(shapes)
    if len(shapes) == len(methods) == len(texts):
        for shape, method, text in zip(shapes, methods, texts, strict=True):
            shape.attrib["method"] = method
            shape.attrib["told"] = text


def _shapes(element: ElementTree.Element) -> Iterator[ElementTree.Element]:
    for child in element:
        if _local(child.tag) in _SHAPES:
            yield child
        elif _local(child.tag) != "defs":
            yield from _shapes(child)


def _attributes(element: ElementTree.Element, name: str) -> Iterator[tuple[str, str]]:
    """Yield the attributes that the page keeps, escaped."""
    for long_key, value in element.attrib.items():
        key = _local(long_key)
        if key == "id" and re.fullmatch(r"[\w.-]+", value):
            # Only what others refer to: clips and the shapes of marks.
            if _local(element.tag) in ("clipPath", "path", "image"):
                yield "id", f"{name}-{value}"
        elif key == "href" and value.startswith("#"):
            yield "href", f"#{name}-{value[1:]}"
        elif key == "clip-path":
            yield key, value.replace("url(#", f"url(#{name}-")
        elif key == "href" and not value.startswith("data:image/png;base64,"):
            continue
        elif key in _GEOMETRY:
            yield key, html.escape(_rounded(value) if key in ("d", "x", "y") else value)
        elif key == "method":
            yield "data-method", html.escape(visible(value))
        elif key == "style":
            yield from _looks(value)
        elif key in _LOOK:
            yield key, html.escape(_NEUTRAL.get(value.lower(), value))


def _looks(style: str) -> Iterator[tuple[str, str]]:
    """Yield a style's declarations as attributes, neutral colours as variables of the page."""
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key in _LOOK:
            yield key, html.escape(_NEUTRAL.get(value.lower(), value))
        elif key in ("font", "font-size") and (size := re.search(r"([\d.]+)px", value)):
            yield "font-size", size[1]
        if key == "font" and re.search(r"\b(bold|[6-9]00)\b", value):
            yield "font-weight", "bold"


def _rounded(numbers: str) -> str:
    """Return coordinates with two decimals, a hundredth of a point, on one line."""
    return " ".join(re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", numbers).split())

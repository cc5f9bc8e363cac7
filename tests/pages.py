"""A reader of web pages, stricter than browsers: what it accepts is well-formed, labelled and self-contained."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "link", "br", "hr", "input"}
SVG_EMPTY = {"line", "polyline", "rect", "circle"}
NEVER = {"script", "iframe", "object", "embed", "link", "base", "form", "font"}
TEXT_ONLY = {"p", "h1", "h2", "h3", "summary", "figcaption", "caption", "dt"}
BLOCKS = {"p", "div", "section", "table", "figure", "dl", "ul", "pre", "h1", "h2", "h3", "details"}


@dataclass
class Element:
    """A start tag and what was read inside it."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    tags: list[str] = field(default_factory=list)


class Page(HTMLParser):
    """Elements in document order; raises AssertionError where the page breaks a rule."""

    def __init__(self, document: str) -> None:
        super().__init__()
        assert document.startswith("<!DOCTYPE html>\n<html lang=")
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(document)
        self.close()
        assert not self._open, f"never closed: {[one.tag for one in self._open]}"
        self._check()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in NEVER, tag
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        if self._open and self._open[-1].tag in TEXT_ONLY:
            assert tag not in BLOCKS, f"{tag} in {self._open[-1].tag}"
        one = Element(tag, dict(attrs))
        for outer in self._open:
            outer.tags.append(tag)
        self.elements.append(one)
        if tag not in VOID:
            self._open.append(one)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_EMPTY, f"<{tag}/>"
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> too many"
        assert self._open[-1].tag == tag, f"</{tag}> while <{self._open[-1].tag}> is open"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for outer in self._open:
            outer.text += data

    def all(self, tag: str) -> list[Element]:
        """Elements of a kind."""
        return [one for one in self.elements if one.tag == tag]

    def text_of(self, tag: str) -> list[str]:
        """What elements of a kind say."""
        return [one.text for one in self.all(tag)]

    def _check(self) -> None:
        for tag in ("html", "head", "title", "body", "header", "main", "nav", "footer", "h1"):
            assert len(self.all(tag)) == 1, tag
        levels = [int(one.tag[1]) for one in self.elements if re.fullmatch("h[1-6]", one.tag)]
        assert levels[0] == 1
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels)), levels
        assert all(one.text.strip() for one in self.elements if re.fullmatch("h[1-6]", one.tag))
        ids = [one.attributes["id"] for one in self.elements if "id" in one.attributes]
        assert len(set(ids)) == len(ids), ids
        for one in self.elements:
            for name in ("aria-labelledby", "href"):
                wanted = one.attributes.get(name)
                assert wanted is None or wanted.removeprefix("#") in ids, (name, wanted)
            source = one.attributes.get("src")
            assert source is None or source.startswith("data:image/"), source
            assert not {"srcset", "background", "style", "onload", "onclick", "onerror"} & one.attributes.keys()
        for image in self.all("img"):
            assert (image.attributes["alt"] or "").strip()
            assert int(image.attributes["width"] or 0) > 0
            assert int(image.attributes["height"] or 0) > 0
        for drawing in self.all("svg"):
            assert drawing.attributes["role"] == "img"
            assert (drawing.attributes["aria-label"] or "").strip()
        for head in self.all("th"):
            assert head.attributes["scope"] in ("col", "row")
            assert head.text.strip()
        for table in self.all("table"):
            assert table.tags[0] == "caption"
        for section in self.all("section"):
            assert section.attributes["aria-labelledby"] in ids
        styles = "".join(self.text_of("style"))
        assert "url(" not in styles
        assert "@import" not in styles

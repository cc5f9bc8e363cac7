"""Building blocks of a self-contained web page: tables, figures, sections, and the page itself.

Every function takes plain text and escapes it; the returned `Html` is inserted unchanged. The page contains its style
and images, runs no script and loads nothing; its content security policy forbids both.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, NewType

import numpy as np
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray
from PIL import Image

from distill.core.errors import SourceError

Html = NewType("Html", str)
Cell = str | int | float | None

_WIDEST = 1800  # maximum width and height of an embedded image in pixels
_WHOLE_BYTES = 128 * 1024  # size up to which images are embedded unchanged
_QUALITY = 84


@dataclass(frozen=True)
class Picture:
    """An embedded image: its data, its size in pixels, and its description."""

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class PageSection:
    """A section of the page."""

    id: str
    title: str
    body: Sequence[Html]


def text(value: object) -> Html:
    """Format plain text."""
    return Html(escape(str(value)))


def paragraph(value: str, kind: Literal["plain", "hint"] = "plain") -> Html:
    """Format a paragraph; a `hint` is set smaller."""
    return Html(f'<p class="{kind}">{escape(value)}</p>')


def heading(value: str) -> Html:
    """Format a subheading."""
    return Html(f"<h3>{escape(value)}</h3>")


def code(value: str) -> Html:
    """Format text in fixed pitch, line by line."""
    return Html(f"<pre><code>{escape(value)}</code></pre>")


def folded(title: str, *parts: Html, opened: bool = False) -> Html:
    """Group parts in an element that the reader can fold."""
    state = " open" if opened else ""
    return Html(f"<details{state}><summary>{escape(title)}</summary>{''.join(parts)}</details>")


def facts(pairs: Sequence[tuple[str, str]]) -> Html:
    """Format names and their values."""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return Html(f'<dl class="facts">{rows}</dl>')


def key_numbers(pairs: Sequence[tuple[str, str, str]]) -> Html:
    """Format the most important numbers: name, number, explanation."""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd><strong>{escape(value)}</strong><span>{escape(hint)}</span></dd></div>"
        for name, value, hint in pairs
    )
    return Html(f'<dl class="tiles">{rows}</dl>')


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Html:
    """Format a table whose first column names the rows; numbers are right-aligned, None is shown as a dash."""
    first = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(_shown(row[0]))}</th>{"".join(_cell(value) for value in row[1:])}</tr>'
        for row in rows
    )
    return Html(
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Cell) -> str:
    kind = "" if isinstance(value, str) else ' class="number"'
    return f"<td{kind}>{escape(_shown(value))}</td>"


def _shown(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else value


def figure(pictures: Sequence[Picture], caption: str, kind: str = "wide", labels: Sequence[str] = ()) -> Html:
    """Place pictures side by side above their caption.

    Args:
        pictures: at least one.
        caption: description.
        kind: `wide` = page width, `card` = several per row, see `columns`.
        labels: label above each picture.
    """
    shown = "".join(
        f'<span class="panel">{f"<b>{escape(label)}</b>" if label else ""}'
        f'<img src="{one.uri}" width="{one.width}" height="{one.height}" alt="{escape(one.alt)}"></span>'
        for one, label in zip(pictures, [*labels, *[""] * (len(pictures) - len(labels))], strict=True)
    )
    return Html(
        f'<figure class="{kind}"><div class="panels">{shown}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def columns(parts: Sequence[str], kind: str) -> Html:
    """Arrange parts in as many columns as fit: `charts`, `small-charts`, `cards` (figures), `columns` (texts)."""
    return Html(f'<div class="{kind}">{"".join(parts)}</div>')


def embed_file(path: Path, alt: str) -> Picture:
    """Embed an image file, unchanged if it is small, otherwise reduced and in WebP.

    Raises:
        SourceError: it is not a readable image.
    """
    try:
        with Image.open(path) as image:
            if path.stat().st_size <= _WHOLE_BYTES and max(image.size) <= _WIDEST and image.format == "PNG":
                return _picture(path.read_bytes(), "png", image.size, alt)
            image.thumbnail((_WIDEST, _WIDEST), Image.Resampling.LANCZOS)
            white = Image.new("RGBA", image.size, "white")
            return _as_webp(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"), alt)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SourceError(f"{path}: cannot be shown: {error}") from None


def embed_pixels(pixels: NDArray[np.uint8], alt: str) -> Picture:
    """Embed an image (Y, X, 3) or (Y, X) uint8."""
    return _as_webp(Image.fromarray(pixels).convert("RGB"), alt)


def _as_webp(image: Image.Image, alt: str) -> Picture:
    held = io.BytesIO()
    image.save(held, "WEBP", quality=_QUALITY, method=4)
    return _picture(held.getvalue(), "webp", image.size, alt)


def _picture(data: bytes, kind: str, size: tuple[int, int], alt: str) -> Picture:
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *size, alt)


def page(title: str, lead: str, top: Sequence[Html], parts: Sequence[PageSection], foot: str) -> str:
    """Assemble the complete document.

    Args:
        title: of the page and its first heading.
        lead: one sentence below it.
        top: content before the sections.
        parts: the sections, listed in the contents; sections without body are omitted.
        foot: last line.
    """
    template = _templates().get_template("report.html.j2")
    shown = [part for part in parts if part.body]
    schemes = {scheme: _variables(scheme) for scheme in _COLOURS}
    return template.render(title=title, lead=lead, top=top, parts=shown, foot=foot, **schemes)


@functools.cache
def _templates() -> Environment:
    """Return the templates of the page and its style sheet."""
    return Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, keep_trailing_newline=True)


def colours(scheme: str) -> dict[str, str]:
    """Return names and values of the page's colours in `light` or `dark`."""
    return dict(_COLOURS[scheme])


def _variables(scheme: str) -> str:
    return "".join(f"--{name}:{value};" for name, value in _COLOURS[scheme].items())


_COLOURS: dict[str, dict[str, str]] = {
    "light": {
        **{"ground": "#ffffff", "soft": "#f3f5f8", "ink": "#1a1f26", "faint": "#545d68", "line": "#cfd6de"},
        **{"link": "#0b57a4", "c0": "#0b62a8", "c1": "#b34700", "c2": "#00704f", "c3": "#8a3a78"},
    },
    "dark": {
        **{"ground": "#14181d", "soft": "#1f252c", "ink": "#e6eaf0", "faint": "#a7b1bd", "line": "#3a434e"},
        **{"link": "#85bdf7", "c0": "#6cb6ff", "c1": "#ff9e64", "c2": "#56d0a0", "c3": "#e3a0d3"},
    },
}

"""Building blocks of a self-contained web page: tables, figures, sections, and the page itself.

Every function takes plain text and escapes it; the returned `Html` is inserted unchanged. The page contains its style
and images, runs no script and loads nothing; its content security policy forbids both.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, NewType

import numpy as np
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
    shown = [part for part in parts if part.body]
    contents = "".join(f'<li><a href="#{escape(part.id)}">{escape(part.title)}</a></li>' for part in shown)
    body = "".join(
        f'<section id="{escape(part.id)}" aria-labelledby="{escape(part.id)}-title">'
        f'<h2 id="{escape(part.id)}-title">{escape(part.title)}</h2>{"".join(part.body)}</section>\n'
        for part in shown
    )
    return _PAGE.format(
        title=escape(title),
        lead=escape(lead),
        top="".join(top),
        contents=contents,
        body=body,
        foot=escape(foot),
        style=_STYLE,
    )


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
_STYLE = f"""
:root {{ color-scheme: light dark; {_variables("light")} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables("dark")} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 74rem; padding: 1.5rem 2rem 3rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.35rem; margin: 2.6rem 0 .8rem; padding-top: .9rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1.05rem; margin: 1.6rem 0 .5rem; overflow-wrap: anywhere; }}
p {{ max-width: 46rem; margin: .6rem 0; }}
.lead {{ font-size: 1.1rem; color: var(--faint); margin: .4rem 0 1.2rem; }}
.hint, footer {{ color: var(--faint); font-size: .9rem; }}
a {{ color: var(--link); }}
.skip {{ position: absolute; left: -60rem; }}
.skip:focus {{ left: 1rem; top: .5rem; background: var(--ground); padding: .4rem .8rem; }}
:focus-visible {{ outline: 2px solid var(--link); outline-offset: 2px; }}
nav ul {{ list-style: none; padding: 0; margin: 1.3rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1.4rem 0 0; }}
.tiles div {{ background: var(--soft); border-radius: .5rem; padding: .8rem 1rem; }}
.tiles dt, .tiles span {{ color: var(--faint); font-size: .9rem; }}
.tiles dd {{ margin: 0; }}
.tiles strong {{ display: block; font-size: 1.7rem; line-height: 1.3; font-variant-numeric: tabular-nums; }}
.facts {{ margin: .6rem 0; }}
.facts div {{ display: grid; grid-template-columns: 11rem 1fr; gap: 1rem; padding: .3rem 0;
  border-bottom: 1px solid var(--line); }}
.facts dt {{ color: var(--faint); }}
.facts dd {{ margin: 0; overflow-wrap: anywhere; }}
.scroll {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .95rem; }}
caption {{ text-align: left; font-weight: 600; padding: .3rem 0; }}
th, td {{ text-align: left; padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }}
thead th {{ color: var(--faint); font-weight: 500; border-bottom: 2px solid var(--line); }}
tbody th {{ font-weight: 500; overflow-wrap: break-word; }}
td.number {{ white-space: nowrap; }}
pre {{ background: var(--soft); border-radius: .5rem; padding: .8rem 1rem; margin: .6rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .88rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
details {{ margin: .8rem 0; }}
code {{ font: inherit; }}
summary {{ cursor: pointer; font-weight: 600; }}
figure {{ margin: 1.2rem 0; }}
figcaption {{ color: var(--faint); font-size: .92rem; margin-top: .5rem; max-width: 60rem; overflow-wrap: anywhere; }}
img {{ max-width: 100%; height: auto; display: block; }}
figure.wide {{ max-width: 58rem; }}
figure.wide .panels {{ background: #ffffff; border-radius: .5rem; padding: .6rem; border: 1px solid var(--line); }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: 1rem 1.6rem; }}
figure.card {{ margin: 0; }}
figure.card .panels {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: .35rem; }}
.panel b {{ font-weight: 500; font-size: .85rem; color: var(--faint); }}
figure.card img {{ width: 100%; border-radius: .2rem; }}
.charts, .small-charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr));
  gap: 1rem 1.2rem; margin: 1rem 0; }}
.small-charts {{ grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); }}
.columns {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(28rem, 1fr)); gap: 0 1.6rem; }}
.chart {{ width: 100%; height: auto; overflow: visible; }}
.chart text {{ fill: var(--ink); font-size: 12px; font-family: inherit; font-variant-numeric: tabular-nums; }}
.chart .title {{ font-weight: 600; font-size: 13px; }}
.chart .tick, .chart .label {{ fill: var(--faint); }}
.chart .middle {{ text-anchor: middle; }}
.chart .end {{ text-anchor: end; }}
.chart .grid {{ stroke: var(--line); stroke-width: 1; }}
.chart .axis {{ stroke: var(--faint); stroke-width: 1; }}
.chart .note {{ stroke: var(--faint); stroke-width: 1; stroke-dasharray: 3 3; }}
.chart .curve {{ fill: none; stroke-width: 1.8; stroke-linejoin: round; }}
.chart .c1 {{ stroke-dasharray: 6 3; }}
.chart .c2 {{ stroke-dasharray: 2 3; }}
.chart .c3 {{ stroke-dasharray: 8 3 2 3; }}
{"".join(f".chart .c{k} {{ stroke: var(--c{k}); }} .chart .n{k} {{ fill: var(--c{k}); }} " for k in range(4))}
footer {{ margin-top: 2.5rem; padding-top: .8rem; border-top: 1px solid var(--line); }}
@media (max-width: 60rem) {{ main > section > .chart text, main > section > .chart .title {{ font-size: 17px; }} }}
@media (max-width: 40rem) {{
  body {{ padding: 1rem; }}
  .cards {{ grid-template-columns: 1fr; }}
  .facts div {{ grid-template-columns: 1fr; gap: 0; }}
}}
@page {{ margin: 15mm 14mm; }}
@media print {{
  :root {{ color-scheme: light; {_variables("light")} }}
  html {{ font-size: 9.5pt; }}
  body {{ max-width: none; padding: 0; }}
  nav, .skip, details:not([open]) {{ display: none; }}
  h2, h3, caption {{ break-after: avoid; }}
  figure, tr, .chart, .tiles, .facts div {{ break-inside: avoid; }}
  footer {{ break-before: avoid; margin-top: 1rem; }}
  .tiles {{ grid-template-columns: repeat(4, 1fr); }}
  .cards, .columns {{ grid-template-columns: repeat(2, 1fr); }}
  .charts, .small-charts {{ grid-template-columns: repeat(2, 1fr); }}
  main > section > .chart text, main > section > .chart .title {{ font-size: 19px; }}
  .scroll {{ overflow: visible; }}
  table {{ font-size: .9rem; }}
}}
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{title}</h1>
<p class="lead">{lead}</p>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
</header>
<main id="content">
{top}
{body}</main>
<footer><p>{foot}</p></footer>
</body>
</html>
"""

"""The pieces of a report's page: well-formed, escaped, legible, and of a bounded size."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import Page
from PIL import Image

from distill.core.errors import SourceError
from viz.report.html import (
    Html,
    PageSection,
    Picture,
    code,
    colours,
    columns,
    embed_file,
    embed_pixels,
    facts,
    figure,
    folded,
    heading,
    key_numbers,
    page,
    paragraph,
    table,
)

RNG = np.random.default_rng(0)
EVIL = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>&lt;{0}{title}"
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1)


def document(*body: Html, title: str = "Run") -> Page:
    return Page(page(title, "lead", [key_numbers([("a", "1", "b")])], [PageSection("one", "One", body)], "foot"))


def picture(alt: str = "noise") -> Picture:
    return embed_pixels(np.zeros((4, 6, 3), np.uint8), alt)


def decoded(one: Picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(one.uri.partition(",")[2])))


@given(TEXT)
def test_every_text_comes_out_as_it_went_in(said: str) -> None:
    body = (
        heading(f"h {said}"),
        paragraph(said),
        code(said),
        facts([(said, said)]),
        table(said, [f"c {said}", said + "."], [(f"r {said}", said), ("2", 2)]),
        figure([picture(f"a {said}")], said, "card", [said]),
        folded(said, paragraph("x")),
    )
    found = Page(page(said, said, [key_numbers([(said, said, said)])], [PageSection("one", f"t {said}", body)], said))
    assert found.text_of("h3") == [f"h {said}"]
    assert found.text_of("h1") == found.text_of("title") == [said]
    assert found.text_of("h2") == [f"t {said}"]
    assert said in found.text_of("p")
    assert found.text_of("code") == [said]
    assert found.text_of("dt") == [*found.text_of("dd")[1:], said]
    assert found.text_of("caption") == found.text_of("figcaption") == found.text_of("summary") == [said]
    assert found.text_of("td") == [said, "2"]
    assert found.all("img")[0].attributes["alt"] == f"a {said}"


def test_markup_in_texts_stays_text() -> None:
    found = document(heading(EVIL), figure([picture(EVIL)], EVIL), table(EVIL, [EVIL], [(EVIL,)]), title=EVIL)
    assert found.text_of("title") == [EVIL]
    assert len(found.all("img")) == 1


def test_policy_forbids_scripts_and_requests() -> None:
    policy = next(m.attributes["content"] for m in document().all("meta") if "http-equiv" in m.attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_sections_without_body_are_left_out() -> None:
    parts = [PageSection("a", "Full", [paragraph("x")]), PageSection("b", "Empty", [])]
    found = Page(page("t", "l", [], parts, "f"))
    assert [one.attributes["href"] for one in found.all("a")] == ["#content", "#a"]
    assert found.text_of("h2") == ["Full"]


def test_cells_by_kind() -> None:
    cells = document(table("t", ["a", "b", "c", "d"], [("row", 1234567, 0.12345, None)])).text_of("td")
    assert cells == ["1,234,567", "0.123", "–"]


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    shown = colours(scheme)
    for ground in ("ground", "soft"):
        for name in ("ink", "faint", "link", "c0", "c1", "c2", "c3"):  # curves also name themselves
            assert contrast(shown[name], shown[ground]) >= 4.5, (name, ground)
    assert shown.keys() == colours("light").keys()


def test_style_knows_every_class() -> None:
    body = (paragraph("x", "hint"), facts([("a", "b")]), table("t", ["a", "b"], [("r", 1)]))
    more = (figure([picture()], "c"), figure([picture()], "c", "card"), columns([], "charts"), columns([], "columns"))
    found = document(*body, *more, columns([], "cards"), columns([], "small-charts"))
    style = "".join(found.text_of("style"))
    used = {name for one in found.elements for name in (one.attributes.get("class") or "").split()}
    assert {name for name in used - {"plain"} if f".{name}" not in style} == set()
    assert used >= {"hint", "facts", "scroll", "number", "wide", "card", "panels", "panel", "charts"}


def test_small_images_are_kept_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    shown = embed_file(path, "small")
    assert base64.b64decode(shown.uri.removeprefix("data:image/png;base64,")) == path.read_bytes()
    assert (shown.width, shown.height) == (30, 20)


def test_huge_images_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.fromarray(RNG.integers(0, 256, (2400, 3600), dtype=np.uint8)).save(path, compress_level=1)
    shown = embed_file(path, "huge")
    assert (shown.width, shown.height) == decoded(shown).size == (1800, 1200)
    assert len(shown.uri) < 3e6 < path.stat().st_size  # noise, the worst case


def test_images_of_any_mode_look_alike(tmp_path: Path) -> None:
    seen = np.zeros((300, 400), np.uint8)
    seen[:, 200:] = 200
    noisy = np.clip(seen.astype(int) + RNG.integers(0, 50, seen.shape), 0, 255).astype(np.uint8)
    grey = Image.fromarray(noisy)
    clear = grey.convert("RGBA")
    clear.putalpha(Image.fromarray((seen > 0).astype(np.uint8) * 255))
    for mode, image in (("L", grey), ("P", grey.convert("P")), ("RGB", grey.convert("RGB")), ("clear", clear)):
        path = tmp_path / f"{mode}.png"
        image.save(path, compress_level=0)
        path.write_bytes(path.read_bytes() + bytes(200_000))  # too large to be kept as it is
        found = np.asarray(decoded(embed_file(path, mode)).convert("L")).astype(float)
        assert found[:, 220:].mean() == pytest.approx(224, abs=6)
        assert found[:, :180].mean() == pytest.approx(255 if mode == "clear" else 24, abs=6)  # clear shows as white


def test_no_image(tmp_path: Path) -> None:
    path = tmp_path / "no.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(SourceError, match=r"no\.png: cannot be shown"):
        embed_file(path, "no")


def test_print_comes_after_dark() -> None:
    style = "".join(document().text_of("style"))
    dark, paper = style.index("prefers-color-scheme: dark"), style.index("@media print")
    assert dark < paper
    assert re.search(r"@media print \{\s*:root \{[^}]*--ground:#ffffff", style)

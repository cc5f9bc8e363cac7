"""A stream of sections gives what the pairs give, however it is cut into calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from distill.core.affinity import NEAREST, pair_affinity, unit
from distill.core.affinity_conventions import from_uint8, to_uint8
from distill.core.errors import DistillError, ShapeError
from distill.core.geometry import Triple
from students.slab_adapter import SlabAdapter
from students.streaming.runner import SectionOutput, SectionRunner, check_stream_offsets
from students.student import Student
from students.yshape import YShape

CPU = torch.device("cpu")
STUDENTS = ("cad", "tu-resnet10t", "resnet18", "tu-mobilenetv3_large_100", "efficientnet-b0", "mit_b0")
Build = Callable[..., Student]


def networks() -> tuple[YShape, SlabAdapter]:
    torch.manual_seed(0)
    student = YShape(width=4, embedding=6).eval()
    for part in ("up3", "up4", "outc"):  # both branches alike, so that sections resemble each other
        getattr(student, f"{part}_t").load_state_dict(getattr(student, f"{part}_tn").state_dict())
    slab = SlabAdapter(half=student.half_channels, full=student.full_channels, features=16).eval()
    return student, slab


def runner(
    student: Student,
    slab: SlabAdapter | None,
    *,
    precision: str = "32-true",
    backend: str = "eager",
    offsets: Sequence[Triple] = NEAREST,
) -> SectionRunner:
    return SectionRunner(
        student, slab, device=CPU, precision=precision, backend=backend, offsets=offsets, embedding="float32"
    )


def one(stream: SectionRunner, section: Tensor) -> SectionOutput:
    return stream.push(section.numpy()[None])[0]


def volume(depth: int = 4, height: int = 37, width: int = 45) -> Tensor:
    return torch.rand(depth, height, width, generator=torch.Generator().manual_seed(1))


def adapter(student: Student) -> SlabAdapter:
    torch.manual_seed(0)
    return SlabAdapter(half=student.half_channels, full=student.full_channels, features=16).eval()


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_stream_equals_the_pairs(channels_last: bool) -> None:
    student, slab = networks()
    if channels_last:
        student.to(memory_format=torch.channels_last)
    equals_the_pairs(student, slab, volume())


@pytest.mark.parametrize("name", STUDENTS)
def test_the_stream_equals_the_pairs_whatever_the_student(student: Build, name: str) -> None:
    equals_the_pairs(student(name), adapter(student(name)), volume(3, 33, 20))


def equals_the_pairs(student: Student, slab: SlabAdapter, sections: Tensor) -> None:
    """Within rounding: batch norms are folded, and affinities are uint8."""
    stream = runner(student, slab)
    images = [s[None, None].contiguous(memory_format=torch.channels_last) for s in sections]
    for z, section in enumerate(sections):
        found = one(stream, section)
        with torch.inference_mode():
            pair = student(images[max(0, z - 1)], images[z])
            affinity = pair_affinity(pair.previous, pair.current)
            embedding = unit(pair.current)
            if z == 0:
                affinity[:, 0] = 0
            joined, logits = slab.joined(pair.half, pair.full, affinity)
        assert within_one(found.affinity, to_uint8(affinity[0]).numpy())
        assert found.embedding is not None
        np.testing.assert_allclose(found.embedding, embedding[0].numpy(), atol=1e-5)
        assert found.joined is not None
        assert found.logits is not None
        torch.testing.assert_close(found.joined, joined[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.logits, logits[0], rtol=1e-3, atol=1e-2)  # steep where affinities are certain


def test_the_first_section_has_no_edge_to_one_before() -> None:
    student, slab = networks()
    stream = runner(student, slab)
    first, second = (one(stream, section) for section in volume(2))
    assert not first.affinity[0].any()
    assert first.affinity[1:].any(axis=(1, 2)).all()
    assert second.affinity[0].any()


def test_what_a_section_leaves_does_not_depend_on_the_stream_before_its_previous_one() -> None:
    student, _ = networks()
    sections = volume(4)
    long = runner(student, None)
    found = [one(long, section) for section in sections][-1]
    short = runner(student, None)
    one(short, sections[2])
    again = one(short, sections[3])
    same([found], [again])
    assert found.joined is None
    assert found.logits is None


def test_a_section_of_another_size_is_refused_and_the_stream_goes_on() -> None:
    student, _ = networks()
    stream = runner(student, None)
    sections = volume(2)
    one(stream, sections[0])
    with pytest.raises(ShapeError, match=r"found size \(37, 44\), expected \(37, 45\)"):
        one(stream, sections[1][:, :44])
    undisturbed = runner(student, None)
    one(undisturbed, sections[0])
    same([one(stream, sections[1])], [one(undisturbed, sections[1])])


def test_sections_below_the_stride() -> None:
    student, slab = networks()
    stream = runner(student, slab)
    for section in volume(2, 3, 5):
        found = one(stream, section)
        assert found.affinity.shape == (3, 3, 5)
        assert found.joined is not None
        assert found.joined.shape[1:] == (2, 3)


def test_half_precision_stays_close() -> None:
    student, slab = networks()
    full = runner(student, slab)
    half = runner(student, slab, precision="bf16-mixed")
    for section in volume(2):
        a, b = one(full, section), one(half, section)
    assert np.abs(from_uint8(a.affinity) - from_uint8(b.affinity)).mean() < 2e-2


def same(found: Sequence[SectionOutput], wanted: Sequence[SectionOutput]) -> None:
    """Bit for bit."""
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine.affinity, theirs.affinity)
        for name in ("embedding", "joined", "logits"):
            a, b = getattr(mine, name), getattr(theirs, name)
            assert (a is None) == (b is None)
            assert a is None or torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def within_one(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> bool:
    return bool((np.abs(found.astype(int) - wanted) <= 1).all())


def cut(sections: Tensor, cuts: set[int]) -> list[Tensor]:
    """Chunks of a volume, none empty."""
    places = [0, *sorted(cuts), len(sections)]
    return [sections[a:b] for a, b in itertools.pairwise(places)]


FURTHER: tuple[Triple, ...] = ((-2, 0, 0), (0, 3, -2), (-3, -1, 2), (-1, 2, 5))


@settings(max_examples=6)
@given(cuts=st.sets(st.integers(1, 4)))
@pytest.mark.parametrize("name", STUDENTS)
def test_sections_in_chunks_equal_sections_alone(student: Build, name: str, cuts: set[int]) -> None:
    network, sections = student(name), volume(5, 18, 21)
    streams = [runner(network, adapter(network), offsets=(*NEAREST, *FURTHER)) for _ in range(2)]
    found = [result for chunk in cut(sections, cuts) for result in streams[0].push(chunk.numpy())]
    same(found, [one(streams[1], section) for section in sections])


def test_a_chunk_of_another_size_is_refused_and_the_stream_goes_on() -> None:
    student, slab = networks()
    sections = volume(4)
    streams = [runner(student, slab, offsets=(*NEAREST, *FURTHER)) for _ in range(2)]
    for stream in streams:
        stream.push(sections[:2].numpy())
    with pytest.raises(ShapeError, match=r"found size \(36, 45\), expected \(37, 45\)"):
        streams[0].push(sections[2:, :36].numpy())
    same(*(stream.push(sections[2:].numpy()) for stream in streams))


def brute(pairs: Sequence[tuple[Tensor, Tensor]], z: int, offset: Triple) -> Tensor:
    """An affinity of section z, pixel by pixel, from every pair's embeddings: (previous, current), (E, H, W) each."""
    step, (dy, dx) = -offset[0], offset[1:]
    now = pairs[z][1].double()
    found = torch.zeros(now.shape[1:], dtype=torch.float64)
    if z - step < 0:
        return found
    other = now if step == 0 else pairs[z - step + 1][0].double()  # as the previous section of the pair behind it
    for y in range(found.shape[0]):
        for x in range(found.shape[1]):
            if 0 <= y + dy < found.shape[0] and 0 <= x + dx < found.shape[1]:
                a, b = now[:, y, x], other[:, y + dy, x + dx]
                found[y, x] = max(0.0, min(1.0, float(a @ b / (a.norm() * b.norm()))))
    return found


@settings(max_examples=8)
@given(
    further=st.lists(
        st.tuples(st.integers(-4, 0), st.integers(-6, 6), st.integers(-6, 6)), min_size=1, max_size=4, unique=True
    ),
    cuts=st.sets(st.integers(1, 4)),
)
def test_further_offsets_equal_a_loop_over_pixels(further: list[Triple], cuts: set[int]) -> None:
    further = [offset for offset in further if offset not in (*NEAREST, (0, 0, 0))] + [(-2, 1, -1), (-3, 0, 0)]
    offsets = (*NEAREST, *dict.fromkeys(further))
    student, _ = networks()
    sections = volume(5, 6, 5)
    stream = runner(student, None, offsets=offsets)
    found = [result for chunk in cut(sections, cuts) for result in stream.push(chunk.numpy())]
    images = sections[:, None, None]
    with torch.no_grad():
        pairs = [student(images[max(0, z - 1)], images[z]) for z in range(5)]
    kept = [(pair.previous[0], pair.current[0]) for pair in pairs]
    for z, result in enumerate(found):
        assert result.affinity.shape == (len(offsets), 6, 5)
        for k, offset in enumerate(offsets[3:], start=3):
            assert within_one(result.affinity[k], to_uint8(brute(kept, z, offset)).numpy())
            assert z + offset[0] >= 0 or not result.affinity[k].any()


def test_further_offsets_leave_the_nearest_as_they_are() -> None:
    student, slab = networks()
    plain = runner(student, slab)
    more = runner(student, slab, offsets=(*NEAREST, *FURTHER))
    for section in volume(4):
        a, b = one(plain, section), one(more, section)
        np.testing.assert_array_equal(a.affinity, b.affinity[:3])
        np.testing.assert_array_equal(a.embedding, b.embedding)
        assert a.joined is not None
        assert b.joined is not None
        assert torch.equal(a.joined, b.joined)


def test_first_sections_have_no_edges_to_sections_before_the_stream() -> None:
    student, _ = networks()
    offsets = (*NEAREST, (-1, 2, 0), (-2, 0, 0), (-3, 0, -1), (0, 2, 0))
    stream = runner(student, None, offsets=offsets)
    there = [[bool(channel.any()) for channel in one(stream, section).affinity] for section in volume(5)]
    assert there == [[-offset[0] <= z for offset in offsets] for z in range(5)]


@pytest.mark.parametrize(("offset", "k"), [((0, 1, 0), 1), ((0, 0, 1), 2)])
def test_an_edge_turned_round_is_the_nearest_one_at_its_other_end(offset: Triple, k: int) -> None:
    student, _ = networks()
    stream = runner(student, None, offsets=(*NEAREST, offset))
    for section in volume(2):
        affinity = one(stream, section).affinity
        _, y, x = offset
        height, width = section.shape
        assert within_one(affinity[3, : height - y, : width - x], affinity[k, y:, x:])


def test_the_stream_keeps_no_more_sections_than_its_offsets_need() -> None:
    student, _ = networks()
    for further, kept in (((), 0), (((0, 4, 4),), 0), (((-1, 1, 0),), 1), (((-3, 0, 0), (-2, 0, 0)), 3)):
        stream = runner(student, None, offsets=(*NEAREST, *further))
        for section in volume(6, 8, 8):
            one(stream, section)
        assert len(stream._mode._earlier) == kept


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ((*NEAREST, (1, 0, 0)), r"offset \[1, 0, 0\]: expected one within the section or to an earlier one"),
        ((*NEAREST, (2, -1, 0)), r"offset \[2, -1, 0\]: expected"),
        ((*NEAREST, (0, 0, 0)), r"offset \[0, 0, 0\]: expected"),
        ((*NEAREST, (-2, 0, 0), (0, 3, 0), (-2, 0, 0)), r"offset \[-2, 0, 0\]: found more than once"),
        ((*NEAREST, (0, -1, 0)), r"offset \[0, -1, 0\]: found more than once"),
        (NEAREST[:2], r"offsets: found \[\[-1, 0, 0\], \[0, -1, 0\]\] first, expected the three nearest ones"),
        (((-2, 0, 0), *NEAREST), r"offsets: found \[\[-2, 0, 0\], .* first, expected the three nearest"),
        ((NEAREST[1], NEAREST[0], NEAREST[2]), "expected the three nearest"),
        ((), r"offsets: found \[\] first"),
    ],
)
def test_offsets_that_a_stream_cannot_give(offsets: tuple[Triple, ...], message: str) -> None:
    with pytest.raises(DistillError, match=message):
        check_stream_offsets(offsets)
    with pytest.raises(DistillError, match=message):
        runner(networks()[0], None, offsets=offsets)


def test_no_section_is_refused() -> None:
    student, _ = networks()
    stream = runner(student, None)
    with pytest.raises(ShapeError, match=r"found shape \(0, 8, 8\)"):
        stream.push(torch.zeros(0, 8, 8).numpy())

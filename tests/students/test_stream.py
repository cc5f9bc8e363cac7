"""A stream of sections gives what the pairs give, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.affinity import pair_affinity
from distill.errors import ShapeError
from students.slab import SlabAdapter
from students.stream import SectionStream
from students.yshape import YShape

CPU = torch.device("cpu")


def networks() -> tuple[YShape, SlabAdapter]:
    torch.manual_seed(0)
    student = YShape(width=4, embedding=6).eval()
    for part in ("up3", "up4", "outc"):  # both branches alike, so that sections resemble each other
        getattr(student, f"{part}_t").load_state_dict(getattr(student, f"{part}_tn").state_dict())
    slab = SlabAdapter(half=student.half_channels, full=student.full_channels, features=16).eval()
    return student, slab


def volume(depth: int = 4, height: int = 37, width: int = 45) -> Tensor:
    return torch.rand(depth, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_stream_equals_the_pairs(channels_last: bool) -> None:
    student, slab = networks()
    if channels_last:
        student.to(memory_format=torch.channels_last)
    stream = SectionStream(student, slab, device=CPU, precision="32-true")
    sections = volume()
    images = [s[None, None].contiguous(memory_format=torch.channels_last) for s in sections]
    for z, section in enumerate(sections):
        found = stream.push(section)
        with torch.inference_mode():
            pair = student(images[max(0, z - 1)], images[z])
            affinity = pair_affinity(pair.previous, pair.current)
            if z == 0:
                affinity[:, 0] = 0
            mixed, logits = slab.section(pair.half, pair.full, affinity)
        assert torch.equal(found.affinity, affinity[0])
        assert torch.equal(found.embedding, pair.current[0])
        assert found.mixed is not None
        assert found.logits is not None
        assert torch.equal(found.mixed, mixed[0])
        assert torch.equal(found.logits, logits[0])


def test_the_first_section_has_no_edge_to_one_before() -> None:
    student, slab = networks()
    stream = SectionStream(student, slab, device=CPU, precision="32-true")
    first, second = (stream.push(section) for section in volume(2))
    assert not first.affinity[0].any()
    assert bool(first.affinity[1:].any(dim=2).any(dim=1).all())
    assert bool(second.affinity[0].any())


def test_what_a_section_leaves_does_not_depend_on_the_stream_before_its_previous_one() -> None:
    student, _ = networks()
    sections = volume(4)
    long = SectionStream(student, None, device=CPU, precision="32-true")
    found = [long.push(section) for section in sections][-1]
    short = SectionStream(student, None, device=CPU, precision="32-true")
    short.push(sections[2])
    again = short.push(sections[3])
    assert torch.equal(found.affinity, again.affinity)
    assert torch.equal(found.embedding, again.embedding)
    assert found.mixed is None
    assert found.logits is None


def test_a_section_of_another_size_is_refused_and_the_stream_goes_on() -> None:
    student, _ = networks()
    stream = SectionStream(student, None, device=CPU, precision="32-true")
    sections = volume(2)
    stream.push(sections[0])
    with pytest.raises(ShapeError, match=r"found size \(37, 44\), expected \(37, 45\)"):
        stream.push(sections[1][:, :44])
    undisturbed = SectionStream(student, None, device=CPU, precision="32-true")
    undisturbed.push(sections[0])
    assert torch.equal(stream.push(sections[1]).affinity, undisturbed.push(sections[1]).affinity)


def test_sections_below_the_stride() -> None:
    student, slab = networks()
    stream = SectionStream(student, slab, device=CPU, precision="32-true")
    for section in volume(2, 3, 5):
        found = stream.push(section)
        assert found.affinity.shape == (3, 3, 5)
        assert found.mixed is not None
        assert found.mixed.shape == (16, 2, 3)


def test_half_precision_stays_close() -> None:
    student, slab = networks()
    full = SectionStream(student, slab, device=CPU, precision="32-true")
    half = SectionStream(student, slab, device=CPU, precision="bf16-mixed")
    for section in volume(2):
        a, b = full.push(section), half.push(section)
    assert b.affinity.dtype == torch.float32
    assert float((a.affinity - b.affinity).abs().mean()) < 2e-2

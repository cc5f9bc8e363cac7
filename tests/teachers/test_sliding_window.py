"""Sliding windows: they cover the volume, one window is the direct run, blending keeps constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from distill.core.affinity import NEAREST, embedding_affinity
from distill.core.geometry import Box
from distill.decoder.decoder import DecoderInput
from teachers.agq import AGQTeacher
from teachers.sliding_window import block_affinity, head_embedding, run_teacher, slide_embedding, sliding_windows
from teachers.teacher import Teacher, TeacherOutput

CPU = torch.device("cpu")
SHAPE = (5, 12, 11)


def teacher(embedding: int) -> AGQTeacher:
    torch.manual_seed(0)
    return AGQTeacher(filters=(8,) * 5, fused=8, branch_width=4, branch_depth=1, embedding=embedding).eval()


def raw(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.float32]:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


class Constant(Teacher):
    """One embedding and one affinity everywhere."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.embedding_channels = embedding

    def forward(self, volume: Tensor) -> TeacherOutput:
        batch, _, depth, height, width = volume.shape
        half = (depth, (height + 1) // 2, (width + 1) // 2)
        given = DecoderInput(torch.zeros(batch, 8, *half), torch.full((batch, 3, *half), 1.5))
        embedding = torch.ones(batch, self.embedding_channels, depth, height, width) * 3
        return TeacherOutput(given, embedding if self.embedding_channels else None, [])


triples = st.tuples(*[st.integers(1, 7)] * 3)


@settings(deadline=None)
@given(triples, triples, triples)
def test_windows_cover_the_volume(shape: Any, block: Any, overlap: Any) -> None:
    counted = np.zeros(shape, int)
    for window in sliding_windows(shape, block, overlap):
        assert Box.of_shape(shape).contains(window)
        assert window.shape == tuple(min(b, s) for b, s in zip(block, shape, strict=True))
        counted[window.slices] += 1
    assert counted.min() >= 1


def test_windows_share_the_overlap() -> None:
    windows = sliding_windows((9, 17, 9), (5, 9, 9), (1, 1, 0))
    assert [window.start for window in windows] == [(0, 0, 0), (0, 8, 0), (4, 0, 0), (4, 8, 0)]


@pytest.mark.parametrize("embedding", [0, 4])
@pytest.mark.parametrize("blend", [False, True])
def test_one_window_is_the_direct_run(embedding: int, blend: bool) -> None:
    network, volume = teacher(embedding), raw()
    windows = sliding_windows(SHAPE, SHAPE, (0, 0, 0))
    found = run_teacher(network, volume, windows, device=CPU, precision="32-true", blend=blend)
    with torch.no_grad():
        direct = network(torch.from_numpy(volume)[None, None])
    assert found.windows == windows == [Box.of_shape(SHAPE)]
    if embedding:
        wanted = embedding_affinity(direct.embedding, NEAREST)[0].numpy()
        unit = torch.nn.functional.normalize(direct.embedding[0], dim=0)
        slid = slide_embedding(network, volume, windows, head_embedding, device=CPU, precision="32-true", blend=blend)
        np.testing.assert_allclose(slid, unit, rtol=1e-4, atol=1e-6)
    else:
        half = direct.decoder_input.affinity_logits[0].sigmoid()
        wanted = half.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., : SHAPE[1], : SHAPE[2]].numpy()
    assert not found.affinity[0, 0].any()
    wanted[0, 0], wanted[1, :, 0], wanted[2, :, :, 0] = 0, wanted[1, :, 2], wanted[2, :, :, 2]
    np.testing.assert_allclose(found.affinity, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("embedding", [0, 4])
@pytest.mark.parametrize("blend", [False, True])
@pytest.mark.parametrize("overlap", [(1, 1, 1), (1, 2, 3), (1, 0, 0), (0, 0, 0), (0, 2, 0)])
def test_a_constant_teacher_leaves_no_seam_in_the_affinities(
    embedding: int, blend: bool, overlap: tuple[int, int, int]
) -> None:
    windows = sliding_windows(SHAPE, (3, 6, 5), overlap)
    assert len(windows) > 8
    found = run_teacher(Constant(embedding), raw(), windows, device=CPU, precision="32-true", blend=blend)
    wanted = np.full((3, *SHAPE), 1.0 if embedding else 1 / (1 + np.exp(-1.5)))
    wanted[0, 0] = 0  # no section before the first; the first row and column are filled
    np.testing.assert_allclose(found.affinity, wanted, rtol=1e-5)


@pytest.mark.parametrize("blend", [False, True])
def test_a_constant_teacher_leaves_no_seam_in_the_embedding(blend: bool) -> None:
    windows = sliding_windows(SHAPE, (3, 6, 5), (1, 2, 2))
    found = slide_embedding(Constant(4), raw(), windows, head_embedding, device=CPU, precision="32-true", blend=blend)
    np.testing.assert_allclose(found, 0.5, rtol=1e-5)


@pytest.mark.parametrize("blend", [False, True])
@pytest.mark.parametrize("kept", [range(0, 1), range(3, 6), range(8, 9)])
def test_kept_sections_are_those_of_the_whole(blend: bool, kept: range) -> None:
    shape = (9, 20, 24)
    windows = sliding_windows(shape, (5, 16, 18), (1, 2, 2))

    def slide(kept: range | None) -> NDArray[np.float32]:
        return slide_embedding(
            teacher(4), raw(shape), windows, head_embedding, device=CPU, precision="32-true", blend=blend, kept=kept
        )

    found = slide(kept)
    assert found.shape == (4, len(kept), *shape[1:])
    np.testing.assert_array_equal(found, slide(None)[:, kept.start : kept.stop])


def test_without_blending_the_last_window_wins() -> None:
    network, volume = teacher(0), raw()
    windows = sliding_windows(SHAPE, (5, 8, 11), (0, 4, 0))
    assert len(windows) == 2
    blocks: list[NDArray[np.float32]] = []
    seen: list[Box] = []

    def keep(window: Box, output: TeacherOutput, own: NDArray[np.float32]) -> None:
        assert np.array_equal(own, block_affinity(output, (window.shape[1], window.shape[2])))
        seen.append(window)
        blocks.append(own.copy())

    plain = run_teacher(network, volume, windows, device=CPU, precision="32-true", blend=False, on_block=keep)
    assert seen == windows
    inner = (slice(None), slice(1, None), slice(1, None), slice(1, None))  # no edge here leaves the volume
    first, second = blocks[0][:, 1:, :, 1:], blocks[1][:, 1:, :, 1:]
    np.testing.assert_array_equal(plain.affinity[inner][:, :, 4:], second[:, :, 1:])  # rows 5 to 11
    np.testing.assert_array_equal(plain.affinity[inner][:, :, :3], first[:, :, 1:4])  # rows 1 to 3
    np.testing.assert_array_equal(plain.affinity[inner][[0, 2], :, 3], second[[0, 2], :, 0])
    np.testing.assert_array_equal(plain.affinity[inner][1, :, 3], first[1, :, 4])  # row 4's edge leaves the last window
    blended = run_teacher(network, volume, windows, device=CPU, precision="32-true")
    both = np.stack([first[:, :, 5:8], second[:, :, 1:4]])
    ramp = np.array([3, 2, 1], np.float32)[None, None, :, None] / 5  # the first window falls, the second rises
    np.testing.assert_allclose(blended.affinity[inner][:, :, 4:7], both[0] * ramp + both[1] * (1 - ramp), rtol=1e-4)


@pytest.mark.usefixtures("every_warning")
def test_a_read_only_volume() -> None:
    volume = raw()
    volume.flags.writeable = False
    windows = sliding_windows(SHAPE, SHAPE, (0, 0, 0))
    found = run_teacher(teacher(0), volume, windows, device=CPU, precision="32-true")
    assert found.affinity.shape == (3, *SHAPE)


def test_half_precision_stays_close() -> None:
    windows = sliding_windows(SHAPE, (5, 8, 8), (0, 2, 2))
    full = run_teacher(teacher(0), raw(), windows, device=CPU, precision="32-true")
    half = run_teacher(teacher(0), raw(), windows, device=CPU, precision="bf16-mixed")
    assert half.affinity.dtype == np.float32
    assert float(np.abs(half.affinity - full.affinity).mean()) < 1e-2

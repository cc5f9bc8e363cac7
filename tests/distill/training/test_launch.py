"""How networks are laid out in memory and compiled, and on which devices training starts."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.config import Pair, load_pair
from distill.core.errors import ConfigError, DistillError
from distill.training.launch import compile_networks, launch, lay_out, leave
from distill.training.objective.objective import Joint
from distill.training.ranks import Ranks

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "phantom_cpu"
CPU = torch.device("cpu")


@pytest.fixture
def joint(tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Joint]:
    monkeypatch.setenv("PHANTOM", "phantom.h5")
    pair: Pair = load_pair(CONFIGS / "teacher.yaml", CONFIGS / "student.yaml", tiny)

    def build() -> Joint:
        torch.manual_seed(0)
        return Joint(pair, (30.0, 6.0, 6.0))

    return build


def test_layout_changes_how_weights_lie_and_not_what_they_are() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(3, 4))
    before = [parameter.clone() for parameter in module.parameters()]
    lay_out(module)
    flat, deep = module[0].weight, module[1].weight
    assert flat.is_contiguous(memory_format=torch.channels_last)
    assert deep.is_contiguous(memory_format=torch.channels_last_3d)
    assert not flat.is_contiguous()
    assert not deep.is_contiguous()
    assert module[0](torch.rand(2, 3, 5, 5)).is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(isinstance(parameter, nn.Parameter) for parameter in module.parameters())
    lay_out(module, channels_last=False)
    assert all(parameter.is_contiguous() for parameter in module.parameters())


def test_layouts_give_the_same_terms(joint: Callable[[], Joint]) -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (1, 3, 4, 4), generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    raw = torch.rand(1, 1, 3, 32, 32, generator=generator)
    plain, last = joint(), joint()
    lay_out(last)
    one, other = plain((raw, labels), 2), last((raw, labels), 2)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_compiling_for_a_cpu_is_refused(joint: Callable[[], Joint]) -> None:
    with pytest.raises(
        ConfigError, match=r"student\.training\.compile: found a CPU, expected a CUDA device; or set it"
    ):
        compile_networks(joint(), CPU)


def test_a_group_that_was_left_is_not_freed_before_the_process_ends() -> None:
    """Freed with Python's lock in hand it would wait for its threads, and they for the lock."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    held = weakref.ref(torch.distributed.group.WORLD)
    leave()
    gc.collect()
    assert not torch.distributed.is_initialized()
    assert held() is not None


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DistillError, match="--device: found 'tpu'"):
        launch("tpu", "32-true", Ranks())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DistillError, match="found 'cuda:1' for 2 processes, expected cuda, cpu or auto"):
        launch("cuda:1", "32-true", Ranks(0, 2, 0, 2))
    with pytest.raises(DistillError, match="found 2 processes for 1 GPUs, expected at most one a GPU"):
        launch("cuda", "32-true", Ranks(0, 2, 0, 2))


def test_one_process_is_not_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    fabric = launch("cpu", "bf16-mixed", Ranks())
    assert (fabric.world_size, fabric.global_rank, fabric.device) == (1, 0, CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_networks_give_the_same_terms_on_a_gpu(joint: Callable[[], Joint]) -> None:
    device = torch.device("cuda")
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (1, 3, 4, 4), generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    raw = torch.rand(1, 1, 3, 32, 32, generator=generator)
    plain, compiled = joint().to(device), joint().to(device)
    names = list(compiled.state_dict())
    compile_networks(compiled, device)
    assert list(compiled.state_dict()) == names
    given = raw.to(device), labels.to(device)
    one, other = plain(given, 2), compiled(given, 2)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-2, atol=1e-3, msg=name)

"""Tensors are made where they are used: every factory call names its device, or its place is listed with the reason.

A tensor without `device=` is made on the CPU. Where code runs on a GPU, it then mixes devices, or is copied there while
all queued kernels wait.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("distill", "teachers", "students")
FACTORIES = {
    *("tensor", "as_tensor", "zeros", "ones", "arange", "full", "empty", "eye", "linspace", "logspace", "range"),
    *("rand", "randn", "randint", "randperm", "normal", "tril_indices", "triu_indices", "empty_strided"),
    *("hann_window", "hamming_window", "kaiser_window", "scalar_tensor", "sparse_coo_tensor", "complex"),
}
ALLOWED = {
    ("distill/core/devices.py", "to_device"): "the values on the host, in pinned memory, before they are copied",
    ("students/streaming/transfer.py", "Transfer._up_to_device"): "pinned memory of the host",
    ("students/streaming/transfer.py", "Transfer.host"): "pinned memory of the host",
    ("distill/decoder/decoder.py", "QueryDecoder.__init__"): "parameters, moved with the module",
    ("students/backends/functions.py", "Decode.__init__"): "a buffer, moved with the module",
}


def functions(tree: ast.AST, name: str = "") -> Iterator[tuple[str, ast.Call]]:
    """All calls below a node with the name of the function that holds them."""
    for child in ast.iter_child_nodes(tree):
        inner = name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{child.name}".lstrip(".")
        if isinstance(child, ast.Call):
            yield name, child
        yield from functions(child, inner)


def without_device(source: str) -> list[tuple[str, int]]:
    """Functions and lines with calls of `torch.FACTORY` that do not say on which device."""
    found = []
    for name, call in functions(ast.parse(source)):
        made = call.func
        if not (isinstance(made, ast.Attribute) and isinstance(made.value, ast.Name) and made.value.id == "torch"):
            continue
        named = {keyword.arg for keyword in call.keywords}
        if made.attr in FACTORIES and not named & {"device", "out", None}:
            found.append((name, call.lineno))
    return found


def imported_factories(source: str) -> set[str]:
    """Factories that would escape the rule under a name of their own."""
    whole = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module == "torch"
    ]
    return {one.name for node in whole for one in node.names} & FACTORIES


FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def test_every_factory_call_names_its_device() -> None:
    assert len(FILES) > 150
    bad, used = [], set()
    for file in FILES:
        source, path = file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()
        assert not imported_factories(source), f"{path}: call factories as torch.NAME"
        for name, line in without_device(source):
            used.add((path, name))
            if (path, name) not in ALLOWED:
                bad.append(f"{path}:{line} in {name or 'the module'}")
    assert not bad, "tensors without device=: " + ", ".join(bad)
    assert used == set(ALLOWED), f"no longer needed: {set(ALLOWED) - used}"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(x):\n    return torch.zeros(3)", 1),
        ("def f(x):\n    return torch.zeros(3, device=x.device)", 0),
        ("x = torch.full((2,), 1.0, dtype=torch.float32)", 1),
        ("x = [torch.arange(n) for n in y]", 1),
        ("x = torch.randperm(4, generator=g)", 1),
        ("x = torch.zeros_like(y)", 0),
        ("x = y.new_zeros(3)", 0),
        ("x = numpy.zeros(3)", 0),
    ],
)
def test_the_rule_itself(source: str, count: int) -> None:
    assert len(without_device(source)) == count

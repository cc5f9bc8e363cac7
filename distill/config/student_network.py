"""Configuration of the 2D network."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from distill.config.data import Strict

_ONLY_SMP = ("encoder", "depth", "fuse", "encoder_weights")


class StudentNetwork(Strict):
    """The 2D network: the paper's (`cad`) or the same shape on a library's encoder (`smp`, see `students.smp`).

    The default scored better after the same training time and is faster (docs/results/students.md). A key of the
    other kind is refused if it was set, and omitted when the configuration is written.
    """

    kind: Literal["cad", "smp"] = "smp"
    width: int = Field(8, ge=1)  # `cad`: 16
    embedding: int = Field(16, ge=1)
    encoder: str = "tu-resnet10t"  # of segmentation-models-pytorch, `tu-NAME` for timm's
    depth: int = Field(4, ge=3, le=5)  # levels of the encoder
    fuse: int = Field(1, ge=0)  # levels up to this one process one section, deeper levels both

    @model_validator(mode="before")
    @classmethod
    def _of_kind(cls, found: Any) -> Any:
        return {"width": 16, **found} if isinstance(found, dict) and found.get("kind") == "cad" else found

    @model_serializer(mode="wrap")
    def _own_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if self.kind == "smp" or key not in _ONLY_SMP}

    @model_validator(mode="after")
    def _fits(self) -> StudentNetwork:
        for key in _ONLY_SMP:
            if self.kind == "cad" and key in self.model_fields_set:
                raise ValueError(f"{key}: set for kind 'cad', expected only with kind 'smp'")
        if self.fuse >= self.depth:
            raise ValueError(f"fuse: found {self.fuse}, expected at most depth - 1 = {self.depth - 1}")
        return self

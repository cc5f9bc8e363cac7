"""Score the merge of two fragments from their features, those of their contact, and those of their neighbours.

The idea of refining watershed fragments by a transformer is that of FragViT and APViT, rows of the comparison of Chen
et al., ICLR 2025, that have no public code; this network is ours.

Legend: B contacts, K neighbours on each side, F features of a fragment, C features of a contact, T = 3 + 2 K tokens,
M width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ContactTokens:
    """Features around contacts; see `distill.segmentation.fragment_features.Neighbourhoods`."""

    contact_BC: Tensor
    ends_B2F: Tensor
    others_B2KF: Tensor
    links_B2KC: Tensor
    shared_B2KC: Tensor
    there_B2K: Tensor
    touching_B2K: Tensor


class Standardise(nn.Module):
    """Subtract the mean and divide by the deviation of each feature, both fixed before the training."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features, device="cpu"))
        self.register_buffer("deviation", torch.ones(features, device="cpu"))

    def fix(self, features: Tensor) -> None:
        """Take mean and deviation of (N, features); a feature that never varies keeps deviation 1."""
        deviation, mean = torch.std_mean(features.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise (..., features)."""
        return (features - self.mean) / self.deviation


class Block(nn.Module):
    """A layer of self-attention with pre-normalisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens_BTM: Tensor, there_BT: Tensor, first: int | None = None) -> Tensor:
        """Update the tokens, or the `first` ones of them alone."""
        normal_BTM = self.norm_1(tokens_BTM)
        kept = tokens_BTM[:, :first]
        query = self._split(self.query(normal_BTM[:, :first]))
        key, value = (self._split(part) for part in self.key_value(normal_BTM).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=there_BT[:, None, None])
        kept = kept + self.project(mixed.transpose(1, 2).flatten(2))
        updated: Tensor = kept + self.narrow(F.gelu(self.widen(self.norm_2(kept))))
        return updated

    def _split(self, tokens_BTM: Tensor) -> Tensor:
        batch, count, width = tokens_BTM.shape
        return tokens_BTM.view(batch, count, self.heads, width // self.heads).transpose(1, 2)


class FragmentTransformer(nn.Module):
    """Two or more layers over the tokens of a contact, its two fragments and their strongest other neighbours.

    The score does not depend on which of the two fragments comes first.

    Args:
        fragment_features: F.
        contact_features: C.
        width: M, a multiple of `heads`.
        layers: at least one.
        heads: of the attention.
    """

    def __init__(
        self, fragment_features: int, contact_features: int, *, width: int = 32, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.standard_fragment, self.standard_contact = Standardise(fragment_features), Standardise(contact_features)
        self.fragment, self.contact = nn.Linear(fragment_features, width), nn.Linear(contact_features, width)
        self.side = nn.Linear(fragment_features, width, bias=False)
        self.other, self.link = nn.Linear(fragment_features, width), nn.Linear(contact_features, width, bias=False)
        self.shared = nn.Linear(contact_features, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.score = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, given: ContactTokens) -> Tensor:
        """Return (B,) logits: above 0 the two fragments are rather parts of one neuron."""
        ends_B2F = self.standard_fragment(given.ends_B2F)
        shared_B2KM = self.shared(self.standard_contact(given.shared_B2KC)) * given.touching_B2K[..., None]
        neighbours_B2KM = (
            self.other(self.standard_fragment(given.others_B2KF))
            + self.link(self.standard_contact(given.links_B2KC))
            + self.side(ends_B2F)[:, :, None]
            + shared_B2KM
        )
        contact_BM = self.contact(self.standard_contact(given.contact_BC))
        tokens_BTM = torch.cat([contact_BM[:, None], self.fragment(ends_B2F), neighbours_B2KM.flatten(1, 2)], dim=1)
        there_BT = F.pad(given.there_B2K.flatten(1), (3, 0), value=True)
        for block in self.blocks[:-1]:
            tokens_BTM = block(tokens_BTM, there_BT)
        read_B1M = self.blocks[-1](tokens_BTM, there_BT, first=1)  # the others would not be read
        logits: Tensor = self.score(self.norm(read_B1M[:, 0]))[:, 0]
        return logits

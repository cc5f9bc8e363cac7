"""The fragment transformer: gradients, symmetry, and what it does not see."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from distill.decoder.fragment_transformer import ContactTokens, FragmentTransformer, Standardise

FRAGMENT, CONTACT, K = 5, 7, 3


def tokens(batch: int = 6, k: int = K) -> ContactTokens:
    made = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=made)

    there = torch.ones(batch, 2, k, dtype=torch.bool, device="cpu")
    there[:, 1, k // 2 :] = False
    touching = there & (torch.rand(there.shape, generator=made) < 0.5)
    return ContactTokens(
        *(numbers(CONTACT), numbers(2, FRAGMENT), numbers(2, k, FRAGMENT), numbers(2, k, CONTACT)),
        *(numbers(2, k, CONTACT), there, touching),
    )


def network(layers: int = 2) -> FragmentTransformer:
    torch.manual_seed(0)
    return FragmentTransformer(FRAGMENT, CONTACT, width=8, layers=layers, heads=2)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_gradients_reach_every_parameter(layers: int) -> None:
    made, given = network(layers), tokens()
    logits = made(given)
    assert logits.shape == (6,)
    (logits**2).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        if not name.endswith("key_value.bias"):  # a constant in the keys shifts all weights of a query alike
            assert bool(parameter.grad.any()), name


def test_the_order_of_the_two_fragments_does_not_matter() -> None:
    made, given = network(), tokens()
    turned = replace(
        given, **{one.name: getattr(given, one.name).flip(1) for one in fields(given) if one.name != "contact_BC"}
    )
    torch.testing.assert_close(made(given), made(turned), rtol=1e-5, atol=1e-6)


def test_neighbours_that_are_not_there_are_not_seen() -> None:
    made, given = network(), tokens()
    hidden = ~given.there_B2K[..., None]
    other = replace(
        given,
        others_B2KF=torch.where(hidden, 9.0, given.others_B2KF),
        links_B2KC=torch.where(hidden, 9.0, given.links_B2KC),
        shared_B2KC=torch.where(given.touching_B2K[..., None], given.shared_B2KC, 9.0),
    )
    torch.testing.assert_close(made(given), made(other))
    shown = replace(given, others_B2KF=given.others_B2KF + 1)
    assert not torch.allclose(made(given), made(shown))


def test_without_neighbours_the_contact_alone_is_scored() -> None:
    assert bool(network()(tokens(k=0)).isfinite().all())


def test_features_are_standardised() -> None:
    features = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * 3 + 2
    features[:, 2] = 5.0  # never varies
    made = Standardise(4)
    made.fix(features)
    found = made(features)
    torch.testing.assert_close(found.mean(0), torch.zeros(4, device="cpu"), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0, 1.0], device="cpu"))

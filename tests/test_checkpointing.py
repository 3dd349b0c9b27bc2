"""Checkpointing gives the plain model's gradients, dropout included, and keeps less."""

import copy

import pytest
import torch
from torch import nn

from lrbench.checkpointing import Checkpointed
from lrbench.measure.ledger import take_ledger
from lrbench.models import paper_cnn


@pytest.mark.parametrize("segments", [1, 4, 11, 22])
def test_gradients_are_the_plain_models_and_less_is_kept(segments: int) -> None:
    torch.manual_seed(0)
    plain = paper_cnn((4, 4, 8), image_size=16).train()
    ours = Checkpointed(copy.deepcopy(plain), segments)
    x = torch.rand(4, 3, 16, 16)
    held = []
    for model in (plain, ours):
        torch.manual_seed(1)
        model(x).square().sum().backward()
        held.append(take_ledger(model, lambda model=model: model(x).square().sum()).held)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    # Cut behind every module, it keeps every module's input: nothing is won.
    assert held[1] < held[0] or segments == 22


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"only nn\.Sequential"):
        Checkpointed(nn.Conv2d(3, 4, 3), 1)
    with pytest.raises(ValueError, match="1 to 2"):
        Checkpointed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 3)

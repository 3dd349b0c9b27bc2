"""Checkpointing gives the plain model's gradients, dropout included, and keeps less."""

import copy

import pytest
import torch
from torch import nn

from lrbench.checkpointing import checkpointed, segments_of, uncheckpointed
from lrbench.measure.ledger import take_ledger
from lrbench.models import paper_cnn

pytestmark = pytest.mark.usefixtures("young_heap")


@pytest.mark.parametrize("segments", [1, 4, 11, 22])
def test_gradients_are_the_plain_models_and_less_is_kept(segments: int) -> None:
    torch.manual_seed(0)
    plain = paper_cnn((4, 4, 8), image_size=16).train()
    ours = checkpointed(copy.deepcopy(plain), segments)
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


def test_it_is_undone_in_place() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    keys = list(model.state_dict())
    assert checkpointed(model, 2) is model
    assert (segments_of(model), list(model.state_dict())) == (2, keys)
    assert segments_of(copy.deepcopy(model)) == 2
    assert uncheckpointed(model) is model
    assert segments_of(model) == 0
    assert "forward" not in vars(model)


def test_a_copy_computes_with_parameters_of_its_own() -> None:
    model = checkpointed(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 2)
    other = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.zero_()
    assert not torch.equal(model(torch.ones(2)), other(torch.ones(2)))


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"only nn\.Sequential"):
        checkpointed(nn.Conv2d(3, 4, 3), 1)
    with pytest.raises(ValueError, match="1 to 2"):
        checkpointed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 3)
    with pytest.raises(ValueError, match="already, in 2 segments"):
        checkpointed(checkpointed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 2), 1)

"""Checkpointing gives the plain model's gradients, dropout included, and keeps less."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lrbench
from lrbench.checkpointing import checkpointed, segments_of, uncheckpointed
from lrbench.conv import plain_copy
from lrbench.measure.ledger import take_ledger
from lrbench.models import paper_cnn

pytestmark = pytest.mark.usefixtures("young_heap")


@pytest.mark.parametrize("segments", [2, 4, 11, 22])
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


class Counting(nn.Module):
    """Put a new buffer in the place of the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return x * 2


def test_statistics_are_counted_once() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), Counting(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    ).train()
    ours, x = checkpointed(copy.deepcopy(plain), 2), torch.rand(8, 3, 6, 6)
    for _ in range(2):
        for model in (plain, ours):
            model(x).square().sum().backward()
    assert ours[2].num_batches_tracked == 2
    for mine, theirs in zip(ours.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_what_comes_last_is_not_computed_again() -> None:
    calls = []
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    for k, module in enumerate(model):
        module.register_forward_pre_hook(lambda *_, k=k: calls.append(k))
    checkpointed(model, 3)(torch.rand(4, 2)).sum().backward()
    assert sorted(calls) == [0, 0, 1, 1, 2]


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
        checkpointed(nn.Conv2d(3, 4, 3), 2)
    with pytest.raises(ValueError, match="2 to 2"):
        checkpointed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 3)
    with pytest.raises(ValueError, match="too few modules"):
        checkpointed(nn.Sequential(nn.Conv2d(3, 4, 3)), 1)
    with pytest.raises(ValueError, match="already, in 2 segments"):
        checkpointed(checkpointed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 2), 2)


class Widening(nn.Sequential):
    def __init__(self, width: int = 8) -> None:
        super().__init__(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))


def test_a_class_derived_from_sequential_is_cut_and_not_built_anew() -> None:
    torch.manual_seed(0)
    plain = Widening()
    ours, x = checkpointed(copy.deepcopy(plain), 2), torch.rand(3, 2)
    assert torch.equal(ours(x), plain(x))
    ours(x).sum().backward()
    plain(x).sum().backward()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_a_part_of_a_model_is_made_plain_with_it() -> None:
    model = nn.ModuleDict({"features": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "head": nn.Linear(2, 2)})
    checkpointed(model["features"], 2)
    assert segments_of(plain_copy(model)["features"]) == 0
    assert segments_of(model["features"]) == 2


def test_a_forward_of_its_own_is_not_replaced() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.forward = lambda x: x
    with pytest.raises(ValueError, match="a Sequential with a forward of its own"):
        checkpointed(model, 2)


@pytest.mark.parametrize("name", ["warm", "rproj"])
def test_what_keeps_a_state_is_not_computed_again(name: str) -> None:
    policy = lrbench.Policy({"conv1": lrbench.LayerPolicy(name, path="backward")}, segments=4)
    model = paper_cnn((4, 4, 8), image_size=16)
    with pytest.raises(ValueError, match=f"{name} of layer 'conv1' keeps what it saw"):
        lrbench.wrap(model, policy)
    assert segments_of(model) == 0
    layer = lrbench.wrap(nn.Conv2d(3, 4, 3), "1", name, path="backward")
    for reentrant in (False, True):
        out = checkpoint(layer, torch.rand(2, 3, 8, 8, requires_grad=True), use_reentrant=reentrant)
        with pytest.raises(RuntimeError, match="leave this layer out of what is checkpointed"):
            out.sum().backward()

"""A tuned policy keeps its bounds where they are measured, and holds what the ledger counts."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrbench
from lrbench import LayerPolicy, Policy
from lrbench.contract.adversarial import photo_crops
from lrbench.measure.memory import Peak
from lrbench.measure.savings import measure_savings
from lrbench.models import paper_cnn
from lrbench.tuning import _exact_step

pytestmark = pytest.mark.usefixtures("young_heap")

CHOICE = tuple(LayerPolicy("svd", eps) for eps in (0.5, 0.3, 0.1, 0.03))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = photo_crops(8, 16) if seed == 0 else photo_crops(8, 16).flip(3)
    return x.float(), torch.randint(0, 10, (len(x),), generator=generator)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return paper_cnn((8, 8, 16), image_size=16)


def test_every_layers_gradient_keeps_the_bounds_on_both_batches(network: nn.Sequential) -> None:
    tuned = lrbench.tune(network, batch(0), check=batch(1), cosine=0.95, candidates=CHOICE, processes=0)
    assert tuned.policy.layers
    assert tuned.policy.lean
    for x, y in (batch(0), batch(1)):
        wrapped = lrbench.wrap(copy.deepcopy(network), tuned.policy)
        errors = lrbench.gradient_errors(wrapped, network, x, y)
        assert len(errors) == 8
        assert (errors["cosine"] >= 0.95 - 1e-6).all()
    table = tuned.candidates
    for layer in tuned.policy.layers:
        rows = table[table["layer"] == layer]
        fit = rows[(rows["cosine"] >= 0.95) & (rows["nbytes"] < rows["saved_bytes"])]
        assert rows[rows["chosen"]]["nbytes"].item() == fit["nbytes"].min()


def test_bytes_are_those_of_the_batch_that_is_trained_with_whatever_it_is_checked_on(network: nn.Sequential) -> None:
    x, y = batch(1)
    many = x.repeat(4, 1, 1, 1), y.repeat(4)
    alone = lrbench.tune(network, batch(0), cosine=-1.0, candidates=CHOICE, processes=0)
    checked = lrbench.tune(network, batch(0), check=many, cosine=-1.0, candidates=CHOICE, processes=0)
    assert checked.candidates["nbytes"].equals(alone.candidates["nbytes"])
    assert list(checked.policy.layers) == list(alone.policy.layers)


def test_what_is_held_is_what_the_ledger_counts(network: nn.Sequential) -> None:
    tuned = lrbench.tune(network, batch(0), cosine=0.9, candidates=CHOICE, processes=0)
    measured = measure_savings(lrbench.wrap(copy.deepcopy(network), tuned.policy), *batch(0))
    assert (tuned.plain_held, tuned.lean_held, tuned.held) == (
        measured["plain_bytes"],
        measured["uncompressed_bytes"],
        measured["held_bytes"],
    )
    assert tuned.held < tuned.lean_held < tuned.plain_held


def test_layers_whose_input_others_keep_are_left_plain(network: nn.Sequential) -> None:
    tuned = lrbench.tune(network, batch(0), cosine=0.5, candidates=CHOICE, lean=False, processes=0)
    assert tuned.policy.layers
    assert set(tuned.policy.layers) <= {"conv3", "conv5"}
    assert not tuned.policy.lean
    assert tuned.lean_held == tuned.plain_held


def test_a_budget_is_kept_with_the_least_error_of_any_layer(network: nn.Sequential) -> None:
    loose = lrbench.tune(network, batch(0), cosine=-1, candidates=CHOICE, processes=0)
    budget = (loose.held + loose.lean_held) // 2
    tuned = lrbench.tune(network, batch(0), budget=budget, candidates=CHOICE, processes=0)
    assert tuned.held <= budget
    assert tuned.gradients["error"].max() <= loose.gradients["error"].max() + 1e-6
    # One step tighter, and the budget would not hold.
    table = tuned.candidates
    worst = table[table["chosen"]]["error"].max()
    tighter = table[(table["error"] < worst) & (table["nbytes"] < table["saved_bytes"])]
    gain = (tighter["saved_bytes"] - tighter["nbytes"]).groupby(tighter["layer"]).max().sum()
    assert tuned.lean_held - gain > budget
    with pytest.raises(ValueError, match="the candidates free at most"):
        lrbench.tune(network, batch(0), budget=1000, candidates=CHOICE, processes=0)


def test_the_policy_survives_its_file_and_the_model_is_left_as_it_was(network: nn.Sequential, tmp_path: Path) -> None:
    before = copy.deepcopy(network.state_dict())
    tuned = lrbench.tune(network, batch(0), cosine=0.9, candidates=CHOICE, processes=0)
    (tmp_path / "tuned.toml").write_text(tuned.policy.to_toml())
    assert Policy.load(tmp_path / "tuned.toml") == tuned.policy
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not lrbench.lean_modules(network)
    assert all(p.grad is None for p in network.parameters())


def test_layers_that_do_not_lower_the_peak_are_left_out(network: nn.Sequential, monkeypatch) -> None:
    def peaks(model: nn.Module, x: Tensor, y: Tensor, processes: int) -> list[Peak]:
        return [Peak(1000 - 100 * ("conv2" in lrbench.compressed_layers(model)), 0)] * processes

    monkeypatch.setattr("lrbench.tuning.measure_step_peaks", peaks)
    tuned = lrbench.tune(network, batch(0), cosine=0.9, candidates=CHOICE, processes=2)
    assert list(tuned.policy.layers) == ["conv2"]
    assert [peak.added for peak in tuned.peaks] == [900, 900]
    assert [peak.added for peak in tuned.plain_peaks] == [1000, 1000]
    assert set(tuned.candidates[tuned.candidates["chosen"]]["layer"]) == {"conv2"}


def test_a_method_that_holds_least_but_peaks_higher_is_not_taken(network: nn.Sequential, monkeypatch) -> None:
    def peaks(model: nn.Module, x: Tensor, y: Tensor, processes: int) -> list[Peak]:
        used = [layer.compressor.name for layer in lrbench.compressed_layers(model).values()]
        return [Peak(1000 - 10 * len(used) + 500 * ("quant2" in used), 0)] * processes

    monkeypatch.setattr("lrbench.tuning.measure_step_peaks", peaks)
    options = {"cosine": 0.5, "candidates": (*CHOICE, LayerPolicy("quant2"))}
    least = lrbench.tune(network, batch(0), **options, processes=0)
    assert "quant2" in {layer.compressor for layer in least.policy.layers.values()}
    tuned = lrbench.tune(network, batch(0), **options, processes=1)
    assert {layer.compressor for layer in tuned.policy.layers.values()} == {"svd"}
    assert tuned.peaks[0].added < 1000


def test_no_policy_peaks_higher_than_bits_alone(network: nn.Sequential, monkeypatch) -> None:
    def peaks(model: nn.Module, x: Tensor, y: Tensor, processes: int) -> list[Peak]:
        # Each layer alone is worse than none; of any two, leaving out one is worse than both.
        return [Peak(1000 + (0, 200, 100)[min(2, len(lrbench.compressed_layers(model)))], 0)] * processes

    monkeypatch.setattr("lrbench.tuning.measure_step_peaks", peaks)
    tuned = lrbench.tune(network, batch(0), cosine=0.9, candidates=CHOICE, processes=1)
    assert not tuned.policy.layers
    assert tuned.policy.lean
    assert tuned.peaks[0].added == tuned.lean_peaks[0].added == 1000


def test_a_budget_is_kept_even_where_more_would_peak_lower(network: nn.Sequential, monkeypatch) -> None:
    def peaks(model: nn.Module, x: Tensor, y: Tensor, processes: int) -> list[Peak]:
        return [Peak(1000 + 10 * len(lrbench.compressed_layers(model)), 0)] * processes

    options = {"candidates": CHOICE, "cosine": 0.9}
    loose = lrbench.tune(network, batch(0), **options, processes=0)
    monkeypatch.setattr("lrbench.tuning.measure_step_peaks", peaks)
    budget = (loose.held + loose.lean_held) // 2
    tuned = lrbench.tune(network, batch(0), **options, budget=budget, processes=1)
    assert tuned.policy.layers
    assert tuned.held <= budget


def test_a_layer_is_compressed_alone_where_all_together_peak_higher(network: nn.Sequential, monkeypatch) -> None:
    def peaks(model: nn.Module, x: Tensor, y: Tensor, processes: int) -> list[Peak]:
        used = {name: layer.compressor.name for name, layer in lrbench.compressed_layers(model).items()}
        gain = 300 * (used == {"conv2": "quant4"})
        return [Peak(1000 + 100 * (len(used) > 1) - gain, 0)] * processes

    monkeypatch.setattr("lrbench.tuning.measure_step_peaks", peaks)
    options = {"cosine": 0.5, "candidates": (*CHOICE, LayerPolicy("quant4"))}
    tuned = lrbench.tune(network, batch(0), **options, processes=1)
    assert {name: layer.compressor for name, layer in tuned.policy.layers.items()} == {"conv2": "quant4"}
    assert tuned.peaks[0].added == 700


def test_gradient_errors_are_those_of_the_gradients() -> None:
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    x, y = torch.randn(4, 3, 2, 2), torch.tensor([1, 2, 3, 4])
    (row,) = lrbench.gradient_errors(exact, exact, x, y).to_dict("records")
    assert row == {"layer": "1", "cosine": pytest.approx(1.0), "error": 0.0}
    turned = copy.deepcopy(exact)
    with torch.no_grad():
        turned[1].weight[0] += 0.1
    (row,) = lrbench.gradient_errors(turned, exact, x, y).to_dict("records")
    ours, theirs = ((F.softmax(m(x), 1) - F.one_hot(y, 10)).T @ x.flatten(1) / 4 for m in (turned, exact))
    assert row["error"] == pytest.approx(((ours - theirs).norm() / theirs.norm()).item(), rel=1e-5)
    assert row["cosine"] == pytest.approx(((ours * theirs).sum() / ours.norm() / theirs.norm()).item(), rel=1e-5)


def test_candidates_on_another_path_are_refused(network: nn.Sequential) -> None:
    with pytest.raises(ValueError, match="path 'backward'"):
        lrbench.tune(network, batch(0), candidates=[LayerPolicy("svd", 0.1, "both")], processes=0)


class Twice(nn.Module):
    """A convolution that is called at two sizes, behind a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 10)
        self.stem.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(self.stem(x)).relu(), 2)
        return self.head(self.conv(x).mean((2, 3)))


def test_a_layer_that_is_called_twice_is_rated_by_one_call_and_a_frozen_one_is_left_out() -> None:
    torch.manual_seed(0)
    model, (x, y) = Twice(), batch(0)
    found = _exact_step(model, x, y, 0)
    assert list(found) == ["conv"]
    inputs, grad, _ = found["conv"]
    assert inputs.shape[2:] == grad.shape[2:] == (8, 8)
    assert lrbench.tune(model, (x, y), candidates=CHOICE, processes=0).candidates["layer"].unique().tolist() == ["conv"]
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    with pytest.raises(ValueError, match="no convolution of the model has a weight that is trained"):
        lrbench.tune(model, (x, y), candidates=CHOICE, processes=0)

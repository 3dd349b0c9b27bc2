"""What is freed is the difference of two ledgers; a formula that shares no code with them agrees with it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrbench
from lrbench.checkpointing import checkpointed
from lrbench.measure.formula import Ranks, UnknownModuleError, factor_bytes, held_by_formula
from lrbench.measure.savings import measure_savings, saved_inputs
from lrbench.models import paper_cnn

pytestmark = pytest.mark.usefixtures("young_heap")

N = 8


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(N, 3, 16, 16, generator=generator), torch.randint(0, 10, (N,), generator=generator)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return paper_cnn((8, 8, 16), image_size=16)


def savings(mask: str, name: str = "svd", path: Any = "backward", lean: bool = False) -> dict[str, Any]:
    model = lrbench.wrap(network(), mask, name, 0.3, path)
    return measure_savings(lrbench.lean(model) if lean else model, *batch())


def by_layer(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["layer"]: row for row in measured["layers"]}


@pytest.mark.parametrize("lean", [False, True], ids=["plain", "lean"])
@pytest.mark.parametrize(
    ("mask", "name", "path"),
    [
        ("000000", "svd", "both"),
        ("111111", "svd", "both"),
        ("111111", "aca", "backward"),
        ("101010", "none", "both"),
        ("011010", "warm", "backward"),
        ("110011", "svd", "forward"),
        ("011111", "quant4", "backward"),
        ("011111", "topk", "backward"),
        ("011111", "hosvd", "backward"),
        ("011111", "rproj", "backward"),
    ],
)
def test_formula_and_ledger_agree_within_one_percent(mask: str, name: str, path: str, lean: bool) -> None:
    measured = savings(mask, name, path, lean)
    assert measured["formula_bytes"] == pytest.approx(measured["held_bytes"], rel=0.01)
    assert measured["plain_formula_bytes"] == pytest.approx(measured["plain_bytes"], rel=0.01)
    for row in measured["layers"]:
        if path != "forward":
            assert row["formula_bytes"] == pytest.approx(row["held_bytes"], rel=0.01)
    freed = sum(row["freed_bytes"] for row in measured["layers"])
    assert freed == measured["freed_bytes"] == measured["uncompressed_bytes"] - measured["held_bytes"]


def test_a_saving_that_is_not_realised_is_reported_with_the_reason() -> None:
    rows = by_layer(savings("111111"))
    assert rows["conv1"]["reason"] == "its input is kept by the caller, too"
    for k in (2, 4, 6):
        row = rows[f"conv{k}"]
        assert row["saved_bytes"] == 0
        assert row["freed_bytes"] == -row["held_bytes"]
        assert row["reason"] == f"its input is kept by relu{k - 1}, too"
    for k in (3, 5):
        row = rows[f"conv{k}"]
        assert row["saved_bytes"] == row["input_bytes"]
        assert row["freed_bytes"] == row["claimed_bytes"]
        assert row["reason"] is None


def test_lean_modules_savings_are_told_apart_from_the_compressors() -> None:
    plain, lean = savings("010101"), savings("010101", lean=True)
    assert plain["lean_freed_bytes"] == 0
    assert lean["plain_bytes"] == plain["plain_bytes"]
    assert lean["lean_freed_bytes"] == lean["plain_bytes"] - lean["uncompressed_bytes"] > 0
    assert all(row["reason"] is None for row in lean["layers"])
    assert all(row["saved_bytes"] == row["input_bytes"] for row in lean["layers"])


def test_an_input_that_is_part_of_a_larger_storage_counts_with_its_own_bytes() -> None:
    x, y = batch()
    large = torch.cat([x] * 5)
    (row,) = measure_savings(lrbench.wrap(network(), "100000", "svd", 0.3, "backward"), large[:N], y)["layers"]
    assert row["input_bytes"] == x.nbytes
    assert row["kept_by"] == "the caller"
    assert row["freed_bytes"] == -row["held_bytes"]


def test_what_a_compressor_hides_is_in_its_layers_row() -> None:
    class Hoarder(lrbench.Compressor):
        guarantee = "block"

        def factorize(self, blocks: Any) -> lrbench.LowRank:
            self.last = blocks.dense()
            U, S, Vh = torch.linalg.svd(self.last, full_matrices=False)
            return lrbench.LowRank.from_padded(U, S[:, :, None] * Vh, torch.full((len(U),), 2))

    measured = measure_savings(lrbench.wrap(network(), "001000", Hoarder(0.9), path="backward"), *batch())
    (row,) = measured["layers"]
    dense = N * 72 * 64 * 4
    assert measured["hidden_bytes"] == dense
    assert row["reason"] == f"{dense} bytes are alive that conv3 made and autograd did not save"


def test_an_input_that_two_layers_read_is_freed_once() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2)
            self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.last = nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.first(x))
            return self.last((self.left(x) + self.right(x)).mean((2, 3)))

    torch.manual_seed(0)
    measured = measure_savings(lrbench.wrap(Fork(), "011", "svd", 0.5, "backward"), *batch())
    rows = by_layer(measured)
    assert sum(row["freed_bytes"] for row in rows.values()) == measured["freed_bytes"]
    assert rows["right"]["freed_bytes"] == -rows["right"]["held_bytes"]
    assert measured["formula_bytes"] is None
    assert "AvgPool2d" in measured["formula_reason"]


class Again(nn.Module):
    """A convolution that is called twice in a forward pass, with whatever lies between."""

    def __init__(self, between: nn.Module | None = None, one_input: bool = False) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.between, self.one_input = between or nn.Identity(), one_input

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out = self.again(x) + self.again(x) if self.one_input else self.again(self.between(self.again(x)))
        return out.mean((2, 3))


INPUT = N * 12 * 16 * 16 * 4
"""Bytes of one call's input."""


@pytest.mark.parametrize("name", ["quant8", "svd"])
def test_a_layer_that_is_called_twice_frees_the_inputs_of_both_calls(name: str) -> None:
    torch.manual_seed(0)
    measured = measure_savings(lrbench.wrap(Again(), "01", name, path="backward"), *batch())
    (row,) = measured["layers"]
    assert row["input_bytes"] == row["saved_bytes"] == 2 * INPUT
    assert row["formula_bytes"] == pytest.approx(row["held_bytes"], rel=0.01)
    assert row["freed_bytes"] == measured["freed_bytes"] == 2 * INPUT - row["held_bytes"]
    assert row["claimed_bytes"] == 2 * INPUT - row["formula_bytes"]
    assert row["reason"] is None


def test_of_two_calls_inputs_only_what_nobody_else_keeps_is_saved() -> None:
    torch.manual_seed(0)
    between = nn.Sequential(nn.AvgPool2d(2), nn.ReLU())
    measured = measure_savings(lrbench.wrap(Again(between), "01", "quant8", path="backward"), *batch())
    (row,) = measured["layers"]
    assert row["input_bytes"] == INPUT + INPUT // 4
    assert row["saved_bytes"] == INPUT
    assert row["kept_by"] == "between.1"
    assert row["freed_bytes"] == measured["freed_bytes"] == INPUT - row["held_bytes"]
    assert row["reason"] == "its input is kept by between.1, too"


@pytest.mark.parametrize("path", ["backward", "forward"])
def test_an_input_that_two_calls_read_is_freed_once(path: Any) -> None:
    torch.manual_seed(0)
    measured = measure_savings(lrbench.wrap(Again(one_input=True), "01", "quant8", path=path), *batch())
    (row,) = measured["layers"]
    assert row["saved_bytes"] == INPUT
    assert row["input_bytes"] == 2 * INPUT
    assert row["freed_bytes"] == measured["freed_bytes"]
    said = {"backward": "another call of the layer counts its input as freed", "forward": None}
    assert row["reason"] == said[path]


def test_what_is_saved_of_an_input_is_named_by_layer() -> None:
    saved = saved_inputs(network(), *batch())
    assert saved["conv1"] == (0, "the caller")
    assert saved["conv2"] == (0, "relu1")
    assert saved["conv3"] == (N * 8 * 8 * 8 * 4, None)


def test_the_model_is_left_as_it_was() -> None:
    model = lrbench.lean(lrbench.wrap(network(), "111111", "warm", 0.3, "backward"))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    measure_savings(model, *batch())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(not layer.compressor.state_dict() for layer in lrbench.compressed_layers(model).values())


def test_factor_bytes_are_counted_by_hand() -> None:
    said = Ranks(shape=(3, 10, 20), ranks=[2, 5], stored=1, numbers=50, itemsize=2, stored_itemsize=4)
    assert factor_bytes(said) == 2 * 7 * 30 + 4 * 50 + (4 * 8 + 3 + 8)
    shared = Ranks((2, 10, 20), [2, 5], stored=0, numbers=50, itemsize=4, stored_itemsize=4, shared=True)
    assert factor_bytes(shared) == 4 * (5 * 10 + 7 * 20) + (3 * 8 + 2 + 2 * 8)


@pytest.mark.parametrize("eps", [0.3, 1e-4], ids=["factors", "stored"])
@pytest.mark.parametrize(("dtype", "factors"), [("float32", "bfloat16"), ("bfloat16", None), ("bfloat16", "float16")])
def test_factors_and_stored_blocks_count_in_their_own_precision(dtype: str, factors: str | None, eps: float) -> None:
    torch.manual_seed(0)
    svd = lrbench.get_compressor("svd", eps=eps, factors=factors)
    model = lrbench.wrap(network(), "001010", svd, path="backward").to(getattr(torch, dtype))
    x, y = batch()
    measured = measure_savings(model, x.to(getattr(torch, dtype)), y)
    for row in measured["layers"]:
        assert row["formula_bytes"] == pytest.approx(row["held_bytes"], rel=0.01)
        assert row["reason"] is None


def test_a_module_that_the_formula_does_not_know_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus())
    with pytest.raises(UnknownModuleError, match=r"Softplus \(1\)"):
        held_by_formula(model, batch()[0], {})


def test_there_is_no_formula_for_checkpointing() -> None:
    measured = measure_savings(checkpointed(network(), 4), *batch())
    assert measured["formula_bytes"] is None
    assert "checkpointing" in measured["formula_reason"]
    assert 0 < measured["held_bytes"] < savings("000000")["held_bytes"]


def test_of_what_is_computed_again_compression_frees_nothing() -> None:
    model = checkpointed(lrbench.wrap(network(), "001000", "quant8", path="backward"), 3)
    (row,) = measure_savings(model, *batch())["layers"]
    assert (row["saved_bytes"], row["held_bytes"], row["freed_bytes"]) == (0, 0, 0)
    assert row["reason"] == "without compression its input is not kept, either"


def test_modules_of_common_networks_keep_what_the_formula_says() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    for each in (model, lrbench.lean(copy.deepcopy(model))):
        measured = measure_savings(each, *batch())
        assert measured["formula_bytes"] == pytest.approx(measured["held_bytes"], rel=0.01)


class Shared(nn.Module):
    """One ReLU and one convolution, each called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.relu, self.drop, self.last = nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 10)
        self.pool, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(self.drop(self.relu(self.conv(self.drop(self.first(x)))))))
        return self.last(self.flat(self.pool(x)))


@pytest.mark.parametrize("lean", [False, True], ids=["plain", "lean"])
@pytest.mark.parametrize("mask", ["00", "01"])
def test_the_formula_counts_every_call_of_a_module(mask: str, lean: bool) -> None:
    torch.manual_seed(0)
    model = lrbench.wrap(Shared(), mask, "svd", 0.3, "backward")
    measured = measure_savings(lrbench.lean(model) if lean else model, *batch())
    assert measured["formula_bytes"] == pytest.approx(measured["held_bytes"], rel=0.01)
    assert measured["plain_formula_bytes"] == pytest.approx(measured["plain_bytes"], rel=0.01)


@pytest.mark.parametrize("path", ["forward", "backward", "both"])
def test_a_frozen_weights_input_is_kept_by_a_plain_layer_and_not_by_a_wrapped_one(path: Any) -> None:
    model = network()
    for conv in (model.conv3, model.conv4):
        conv.weight.requires_grad_(False)
    measured = measure_savings(lrbench.wrap(model, "001100", "svd", 0.3, path), *batch())
    assert measured["formula_bytes"] == pytest.approx(measured["held_bytes"], rel=0.01)
    assert measured["plain_formula_bytes"] == pytest.approx(measured["plain_bytes"], rel=0.01)
    row = by_layer(measured)["conv3"]
    assert row["formula_bytes"] == row["held_bytes"] == 0
    assert row["freed_bytes"] == row["claimed_bytes"] == row["input_bytes"]


PADDINGS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (0, 2), "padding_mode": "circular"},
    {"kernel_size": 3, "padding_mode": "replicate"},
    {"kernel_size": 2, "padding": "same"},
    {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": (2, 3), "padding": "same", "padding_mode": "reflect"},
]


@pytest.mark.parametrize("options", PADDINGS, ids=str)
def test_a_padded_copy_counts_where_pytorch_makes_one(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 10, **options), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for mask in ("00", "01"):
        measured = measure_savings(lrbench.wrap(copy.deepcopy(model), mask, "svd", 0.3, "backward"), *batch())
        loss = N * 10 * 4 + 4
        assert measured["formula_bytes"] == pytest.approx(measured["held_bytes"] - loss, rel=0.01)


@pytest.mark.parametrize(("options", "x_stays"), [(PADDINGS[0], True), (PADDINGS[1], False), (PADDINGS[3], False)])
def test_the_padded_copy_that_a_plain_layer_keeps_is_freed(options: dict[str, Any], x_stays: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 10, **options), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    measured = measure_savings(lrbench.wrap(model, "01", "svd", 0.5, "backward"), *batch())
    (row,) = measured["layers"]
    geometry, x = lrbench.Geometry.of(model[1]), torch.rand(N, 8, 16, 16)
    copied = geometry.pad(x).nbytes
    assert row["saved_bytes"] == copied + (x.nbytes if x_stays else 0)
    assert row["freed_bytes"] == measured["freed_bytes"] == row["saved_bytes"] - row["held_bytes"]
    assert row["reason"] is None


def test_dropout_that_works_in_place_keeps_numbers_even_in_a_lean_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.Dropout(0.5, inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    measured = measure_savings(lrbench.lean(model), *batch())
    assert measured["formula_bytes"] == pytest.approx(measured["held_bytes"], rel=0.01)


def test_a_convolution_that_is_not_called_has_no_savings() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.aux = nn.Conv2d(3, 10, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3))

    model = lrbench.wrap(Unused(), "11", "svd", 0.3, "backward")
    assert list(by_layer(measure_savings(model, *batch()))) == ["conv"]

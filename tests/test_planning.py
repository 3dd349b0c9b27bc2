import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from runs import photos
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import lrbench
from lrbench.datasets import to_float
from lrbench.measure.layers import measure_layers
from lrbench.models import paper_cnn
from lrbench.needed import needed_ranks
from lrbench.resnet import resnet20
from lrbench.saved import PlanError


class Twice(nn.Module):
    """One convolution and one ReLU, each applied twice, to images of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.idle = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(self.pool(self.relu(self.conv(x))))


class Functional(nn.Module):
    """What is no module keeps tensors, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        return self.conv3(torch.tanh(self.conv2(F.relu(self.conv1(x - 0.5)))))


class Scaled(nn.Conv2d):
    """A subclass that wrap takes."""


class OwnForward(nn.Conv2d):
    """A subclass that wrap refuses."""

    def forward(self, x):
        return F.conv2d(2 * x, self.weight)


class Checkpointed(nn.Sequential):
    """What is computed again keeps nothing."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def verdicts(model, shape=(2, 3, 16, 16)):
    table = lrbench.plan_model(model, shape)
    return [(row["layer"], row["holders"], row["pays"]) for row in table.to_dict("records")]


def kept_storages(model, x):
    """Storages that a real pass keeps: all but the batch's and the parameters'."""
    kept = {}
    owned = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.train()(x)
    del out
    return sum(s.nbytes() for pointer, s in kept.items() if pointer not in owned)


GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (3, 1)},
    {"kernel_size": 3, "padding": 1, "groups": 3},
    {"kernel_size": (2, 4), "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 2, "padding_mode": "circular", "bias": False},
]


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("cls", [nn.Conv2d, Scaled])
def test_shapes_bytes_and_break_even_ranks_are_those_of_a_real_batch(cls, options):
    conv = cls(6, 9, **options)
    x = torch.rand(5, 6, 11, 12)
    (row,) = lrbench.plan_model(nn.Sequential(nn.Softplus(), conv), x.shape).to_dict("records")
    blocks = lrbench.Im2col.of(x, lrbench.Geometry.of(conv))
    N, m, n = blocks.shape
    assert (row["blocks"], row["m"], row["n"]) == (N, m, n)
    assert row["im2col_bytes"] == blocks.dense().nbytes
    assert row["input_bytes"] == x.nbytes
    for name, nbytes in (("im2col", blocks.dense().nbytes), ("input", x.nbytes), ("saved", row["freed_bytes"])):
        assert row[f"rank_{name}"] * N * (m + n) * 4 == pytest.approx(nbytes), name
    largest = row["max_rank"]
    assert largest * (m + n) * N * 4 < row["freed_bytes"]
    assert (largest + 1) * (m + n) * N * 4 >= row["freed_bytes"] or (largest + 1) * (m + n) > m * n


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_flops_are_those_that_torch_counts(options):
    conv = nn.Conv2d(6, 9, **options)
    x = torch.rand(5, 6, 11, 12)
    (row,) = lrbench.plan_model(conv, x.shape).to_dict("records")
    g, N, m, n = conv.groups, 5, row["m"], row["n"]
    with FlopCounterMode(display=False) as counter:
        conv(x)
    assert row["dense_flops"] == counter.get_total_flops()
    rank = 2
    U, V, W = torch.rand(N, g, m, rank), torch.rand(N, g, rank, n), torch.rand(1, g, 9 // g, m)
    with FlopCounterMode(display=False) as counter:
        (W @ U) @ V
    assert row["flops_per_rank"] * rank == counter.get_total_flops()
    assert row["rank_flops"] * row["flops_per_rank"] == pytest.approx(row["dense_flops"])


def test_in_the_papers_network_every_second_input_is_kept_by_a_relu_and_the_first_by_the_caller():
    table = lrbench.plan_model("paper", (100, 3, 32, 32))
    assert list(table["holders"]) == ["the caller's batch", "relu1", "", "relu3", "", "relu5"]
    assert list(table["pays"]) == ["never", "alias removed", "as it is", "alias removed", "as it is", "alias removed"]
    assert list(table["aliased"]) == [True, True, False, True, False, True]
    assert table["rank_input"].tolist() == pytest.approx(
        [3072 / 1051, 32768 / 1312, 8192 / 544, 16384 / 832, 4096 / 640, 8192 / 1216]
    )
    saved = table["rank_saved"].tolist()
    assert saved == pytest.approx([0, 0, 8192 / 544, 0, 4096 / 640, 0])
    # A ReLU's bits take a thirty-second of its float32 output.
    assert table["rank_unaliased"][1] == pytest.approx(31 / 32 * 32768 / 1312)
    assert list(table["max_rank"]) == [0, 24, 15, 19, 6, 6]
    assert table["im2col_bytes"][0] == 11_059_200


def test_totals_count_each_storage_once():
    totals = lrbench.plan_model("paper", (100, 3, 32, 32)).attrs["totals"]
    inputs = [4 * 100 * numbers for numbers in (3072, 32768, 8192, 16384, 4096, 8192)]
    assert totals["input"] == totals["kept"] == sum(inputs)
    assert totals["freed"] == inputs[2] + inputs[4]
    assert totals["unaliased"] == sum(inputs[2::2]) + 31 / 32 * sum(inputs[1::2])
    both = nn.Sequential(nn.Softplus(), _Beside(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)))
    totals = lrbench.plan_model(both, (2, 3, 8, 8)).attrs["totals"]
    assert totals["input"] == totals["kept"] == totals["freed"] == totals["unaliased"] == 4 * 2 * 3 * 64
    assert totals["im2col"] == 2 * 4 * 2 * 27 * 36


class _Beside(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return sum(branch(x) for branch in self.branches)


@pytest.mark.parametrize(
    ("between", "holders", "pays"),
    [
        ([nn.ReLU()], "1", "alias removed"),
        ([nn.BatchNorm2d(4), nn.ReLU(inplace=True)], "2", "alias removed"),
        ([nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2)], "", "as it is"),
        ([nn.ReLU(), nn.BatchNorm2d(4)], "", "as it is"),
        ([nn.Sigmoid()], "1", "never"),
        ([nn.GELU()], "", "as it is"),
        ([nn.Identity()], "", "as it is"),
    ],
    ids=lambda value: str(value),
)
def test_an_input_is_aliased_where_the_layer_before_keeps_its_output(between, holders, pays):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *between, nn.Conv2d(4, 4, 3, padding=1))
    assert verdicts(model) == [("0", "the caller's batch", "never"), (str(len(between) + 1), holders, pays)]


def test_convolutions_that_read_one_input_free_it_only_together():
    model = nn.Sequential(nn.Softplus(), _Beside(nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)))
    table = lrbench.plan_model(model, (2, 3, 16, 16))
    assert list(table["holders"]) == ["1.branches.1", "1.branches.0"]
    assert list(table["rank_saved"]) == [0, 0]
    assert table["rank_unaliased"].tolist() == pytest.approx([768 / 2 / (27 + 196)] * 2)
    assert table["verdict"][0] == "only if 1.branches.1 were compressed, too: up to rank 1"


def test_functions_are_named_by_the_module_that_calls_them():
    table = lrbench.plan_model(nn.Sequential(Functional()), (2, 3, 16, 16))
    assert list(table["holders"]) == ["", "relu in 0", "tanh in 0"]
    assert list(table["pays"]) == ["as it is", "alias removed", "never"]


def test_a_module_that_is_used_twice_has_two_rows_and_one_bit():
    table = lrbench.plan_model(Twice(), (2, 3, 16, 16))
    assert list(zip(table["bit"], table["layer"], table["call"], strict=True)) == [
        (0, "conv", 1),
        (0, "conv", 2),
        (1, "idle", 0),
    ]
    assert table["n"].fillna(0).tolist() == [256, 64, 0]
    assert list(table["pays"]) == ["never", "as it is", "never"]
    assert table["verdict"][2] == "never: it is not called"


def test_a_padded_copy_is_what_the_convolution_keeps_and_compression_frees():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"))
    (row,) = lrbench.plan_model(model, (2, 3, 16, 16)).to_dict("records")
    assert row["freed_bytes"] == 4 * 2 * 3 * 18 * 18
    assert row["pays"] == "as it is"


def test_what_compression_could_not_change_is_said():
    model = nn.Sequential(nn.Softplus(), Checkpointed(nn.Conv2d(3, 3, 1)), OwnForward(3, 3, 1, bias=False))
    table = lrbench.plan_model(model, (2, 3, 8, 8))
    assert list(table["pays"]) == ["never"] * 2
    assert list(table["verdict"]) == [
        "never: nothing is kept for it",
        "never: a OwnForward with a forward of its own",
    ]
    table = lrbench.plan_model(nn.Sequential(nn.Softplus(), nn.Conv2d(1, 4, 5, padding=2)), (2, 1, 4, 4))
    assert list(table["verdict"]) == ["never: not even at rank 1"]
    assert 0 < table["rank_saved"][0] < 1


def frozen(model, *names):
    """The model, in which some convolutions' weights take no gradient."""
    for name in names:
        model.get_submodule(name).weight.requires_grad_(False)
    return model


def test_under_a_frozen_weight_wrapping_frees_the_input_at_any_rank():
    model = frozen(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 9, 3), nn.ReLU(), nn.Conv2d(9, 4, 1)), "1", "3")
    table = lrbench.plan_model(model, (2, 3, 8, 8))
    assert list(table["pays"]) == ["never", "as it is", "alias removed"]
    assert list(table["max_rank"]) == [0, 36, 9]
    assert list(table["verdict"][1:]) == [
        "at no error on path backward (frozen weight)",
        "only if 2 kept bits: at no error on path backward (frozen weight)",
    ]
    model = frozen(nn.Sequential(nn.Conv2d(3, 6, 1)), "0")
    model[0].bias.requires_grad_(False)
    assert list(lrbench.plan_model(model, (2, 3, 8, 8))["verdict"]) == ["never: nothing is kept for it"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: paper_cnn((4, 6, 8)),
        lambda: frozen(paper_cnn((4, 6, 8)), "conv2", "conv3"),
        lambda: resnet20((4, 6, 8)),
        *(lambda o=options: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 9, **o)) for options in GEOMETRIES),
    ],
)
def test_what_is_said_to_be_freed_is_what_a_wrapped_layer_no_longer_keeps(build):
    torch.manual_seed(0)
    x = torch.rand(8, 3, 32, 32)
    model = build()
    table = lrbench.plan_model(model, x.shape)
    whole = kept_storages(model, x)
    for row in table.to_dict("records"):
        lrbench.wrap(model, [row["layer"]], "svd", eps=1, path="backward")
        model(x)  # how often each pixel occurs in a block is found out once, in a graph of its own
        left = kept_storages(model, x)
        lrbench.unwrap(model)
        # Factors of rank 0 are offsets and origins alone: 8 bytes and 1 for each block.
        assert whole - left == pytest.approx(row["freed_bytes"], abs=9 * row["blocks"] + 8), row["layer"]
    lrbench.wrap(model, list(table["layer"]), "svd", eps=1, path="backward")
    freed = whole - kept_storages(model, x)
    assert freed == pytest.approx(table.attrs["totals"]["freed"], abs=9 * int(table["blocks"].sum()) + 8 * len(table))


def test_a_model_is_left_as_it_is_wrapped_or_not():
    torch.manual_seed(0)
    model = lrbench.wrap(paper_cnn((2, 3, 4)), "101010", "svd").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = lrbench.plan_model(model, (4, 3, 32, 32))
    assert table["holders"].tolist() == ["the caller's batch", "relu1", "", "relu3", "", "relu5"]
    assert not model.training
    assert list(lrbench.compressed_layers(model)) == ["conv1", "conv3", "conv5"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_lazy_modules_stay_lazy():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(4, 3))
    assert verdicts(model) == [("0", "the caller's batch", "never"), ("3", "2", "alias removed")]
    assert nn.parameter.is_lazy(model[0].weight)


class ReadsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) if x.sum().item() > 0 else x


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        ("lenet", (1, 3, 8, 8), "there is no model 'lenet'"),
        ("paper", (1, 3, 32), "four positive whole numbers"),
        ("paper", (1, 3, 32, 0), "four positive whole numbers"),
        ("paper", (1, 3, 64, 64), "in fc1 (RuntimeError"),
        ("paper", (1, 4, 32, 32), "in conv1 (RuntimeError"),
        (nn.Linear(3, 3), (1, 3, 3, 3), "no torch.nn.Conv2d"),
        (ReadsValues(), (1, 3, 8, 8), "a model that reads no values"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_planned_is_said_in_one_sentence(model, shape, message):
    with pytest.raises(PlanError, match=re.escape(message)) as error:
        lrbench.plan_model(model, shape)
    assert "\n" not in str(error.value)


BIG = """
import time
import lrbench
start = time.perf_counter()
table = lrbench.plan_model("resnet50", (256, 3, 224, 224))
assert time.perf_counter() - start < 20
from pathlib import Path
(line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(len(table), line.split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
def test_a_resnet50_of_256_photographs_is_planned_in_seconds_and_under_a_gigabyte():
    done = subprocess.run([sys.executable, "-c", BIG], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows, peak = map(int, done.stdout.split())
    assert rows == 53
    assert peak * 1024 < 1e9


def test_in_a_resnet50_compression_pays_nowhere_as_it_is():
    table = lrbench.plan_model("resnet50", (256, 3, 224, 224))
    assert table["pays"].value_counts().to_dict() == {"alias removed": 52, "never": 1}
    by_layer = table.set_index("layer")["holders"]
    assert by_layer["layer2.0.conv1"] == "layer1.2.relu3, layer2.0.downsample.0"
    assert by_layer["layer1.0.conv1"] == "layer1.0.downsample.0"
    assert by_layer["layer4.2.conv2"] == "layer4.2.relu1"


def test_measured_ranks_are_those_that_measure_layers_finds():
    torch.manual_seed(0)
    model = resnet20((4, 4, 8))
    images = to_float(photos().train_images[:12])
    state = torch.get_rng_state()
    measured = needed_ranks(model, images, [0.3, 0.1], seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.bn1.num_batches_tracked == 0
    assert not any(module._forward_pre_hooks for module in model.modules())
    for eps in (0.3, 0.1):
        lrbench.wrap(model, "1" * 19, "svd", eps=eps, path="backward")
        layers = measure_layers(model, [images], seed=5)
        lrbench.unwrap(model)
        assert measured["layer"].tolist() == [layer["layer"] for layer in layers]
        assert measured[f"rank_{eps}"].tolist() == [layer["rank_mean"] for layer in layers]
        ratios = [layer["factor_bytes"] / layer["input_bytes"] for layer in layers]
        assert measured[f"bytes_{eps}"].tolist() == pytest.approx(ratios)


def test_large_batches_are_measured_on_some_of_their_images():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    images = torch.rand(150, 3, 12, 12)
    first, again, other = (needed_ranks(model, images, [0.3], seed=seed) for seed in (0, 0, 1))
    assert first["images"].tolist() == [100, 100]
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)

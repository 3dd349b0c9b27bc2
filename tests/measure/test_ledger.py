"""The ledger finds every storage once, says who holds it, and sees what is hidden."""

import copy
import threading
import tracemalloc
from typing import Any

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrbench
from lrbench.measure.ledger import Ledger, take_ledger
from lrbench.models import paper_cnn

pytestmark = pytest.mark.usefixtures("young_heap")

N = 6
IMAGE = 3 * 16 * 16 * 4


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(N, 3, 16, 16, generator=generator), torch.randint(0, 10, (N,), generator=generator)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return paper_cnn((4, 8, 8), image_size=16).train()


def ledger_of(model: nn.Module) -> Ledger:
    x, y = batch()
    copy.deepcopy(model)(x)  # kernels are loaded: slow where memory is traced
    return take_ledger(model, lambda: F.cross_entropy(model(x), y))


def holders(ledger: Ledger) -> dict[tuple[str, ...], int]:
    """Bytes of the graph by who holds them."""
    out: dict[tuple[str, ...], int] = {}
    for entry in ledger.entries:
        if entry.kind == "graph":
            out[entry.holders] = out.get(entry.holders, 0) + entry.nbytes
    return out


def test_a_plain_model_holds_what_pytorch_documents() -> None:
    size = {1: N * 4 * 16 * 16 * 4, 2: N * 8 * 8 * 8 * 4, 3: N * 8 * 4 * 4 * 4}
    found = holders(ledger_of(network()))
    for pair, bytes_ in size.items():
        first, second = f"{2 * pair - 1}", f"{2 * pair}"
        assert found[f"relu{first}", f"conv{second}"] == bytes_  # one storage, which two modules hold
        assert found[(f"relu{second}",)] == bytes_
        assert found[(f"dropout{pair}",)] == bytes_
        assert found[(f"pool{pair}",)] == bytes_ + 2 * (bytes_ // 4)  # its input, and an int64 for each output
    assert found[("conv3",)] == size[1] // 4
    assert found[("conv5",)] == size[2] // 4


def test_parameters_and_the_callers_batch_are_rows_of_their_own() -> None:
    model = network()
    ledger = ledger_of(model)
    weights = [p.nbytes for p in model.parameters() if p.ndim > 1]
    assert sorted(e.nbytes for e in ledger.entries if e.kind == "parameter") == sorted(weights)
    assert {(e.nbytes, e.holders) for e in ledger.entries if e.kind == "caller"} == {
        (N * IMAGE, ("conv1",)),
        (48, ("",)),
    }
    assert ledger.held == ledger.total("graph")


def test_factors_take_the_place_of_the_input_unless_another_module_keeps_it() -> None:
    model = lrbench.wrap(network(), "111111", "svd", 0.3, "backward")
    ledger = ledger_of(model)
    for name, ((size, entry),) in ledger.inputs.items():
        assert size > 0
        if name in ("conv2", "conv4", "conv6"):
            assert entry is not None
            assert entry.holders == (f"relu{int(name[-1]) - 1}",)
        elif name != "conv1":
            assert entry is None
        assert any(e.kind == "graph" for e in ledger.of(name))


def test_lean_modules_set_the_inputs_of_the_layers_behind_them_free() -> None:
    model = lrbench.lean(lrbench.wrap(network(), "111111", "svd", 0.3, "backward"))
    ledger = ledger_of(model)
    assert all(entry is None for name, ((_, entry),) in ledger.inputs.items() if name != "conv1")


def test_the_model_and_its_gradients_are_left_as_they_were() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    ledger_of(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_forward_pass_that_fails_leaves_no_hooks() -> None:
    model = network()
    with pytest.raises(RuntimeError):
        take_ledger(model, lambda: model(torch.zeros(1, 5, 16, 16)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_a_compressor_carries_on_and_factors_that_were_given_are_told_apart() -> None:
    model = lrbench.wrap(network(), "001000", "warm", 0.3, "backward")
    states = [e for e in ledger_of(model).entries if e.kind == "state"]
    assert [e.maker for e in states] == ["conv3"]
    model = lrbench.wrap(network(), "100000", "svd", 0.3, "backward")
    x, y = batch()
    kept = lrbench.KeptInput(model, x)
    with kept.batch(torch.arange(N)):
        entries = take_ledger(model, lambda: F.cross_entropy(model(x), y)).entries
    ours = [e for e in entries if "conv1" in e.holders and e.kind == "kept"]
    whole = lrbench.get_compressor("svd", eps=0.3).compress(lrbench.Im2col(x, 3, padding=1)).nbytes
    assert sum(e.nbytes for e in ours) == whole + 8 * N  # and where each image's rows begin


# Planted leaks


class _Leak(nn.Module):
    """Something between two layers that keeps what it should not."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.nooks: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        return _Leaky.apply(x, self.where, self.nooks)


class _Leaky(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, where: str, nooks: list[Any]) -> Tensor:
        copied = x * 2
        if where == "attribute":
            ctx.hidden = copied
        elif where == "container":
            ctx.hidden = ([{"deep": copied}],)
        elif where == "closure":
            nooks.append(lambda: copied)
        elif where == "graph closure":
            ctx.hidden = lambda: copied
        elif where == "numpy":
            ctx.hidden = copied.numpy().copy()
        elif where == "numpy in a tuple":
            ctx.hidden = (copied.numpy().copy()[1:],)
        elif where == "numpy elsewhere":
            nooks.append(copied.numpy().copy())
        elif where == "numba":
            ctx.hidden = _doubled(x.detach().numpy())
        elif where == "view":
            ctx.hidden = copied.numpy()  # of a tensor's memory
        elif where == "bytes":
            ctx.hidden = copied.numpy().tobytes()
        elif where == "large":
            ctx.save_for_backward(torch.empty(x.numel() + 5000)[:5])
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


@numba.njit
def _doubled(x: Any) -> Any:
    return x * 2


def leaking(where: str) -> tuple[Ledger, Ledger, int]:
    """The ledgers with and without a leak behind the first ReLU, and the leak's size."""
    model = network()
    clean = ledger_of(nn.Sequential(model))
    model.relu1 = nn.Sequential(model.relu1, _Leak(where))
    size = N * 4 * 16 * 16 * 4
    model(batch()[0])  # Numba compiles, and its code is no leak
    model.relu1[1].nooks.clear()
    return ledger_of(model), clean, size


@pytest.mark.parametrize("where", ["attribute", "container", "closure", "graph closure", "view"])
def test_a_tensor_that_is_hidden_is_found(where: str) -> None:
    ledger, clean, size = leaking(where)
    hidden = [e for e in ledger.entries if not e.saved and e.kind != "foreign"]
    assert [(e.nbytes, e.maker, e.kind) for e in hidden] == [
        (size, "relu1.1", "elsewhere" if where == "closure" else "graph")
    ]
    assert ledger.held == clean.held + 2 * size  # its output, too, is one storage more than without it


@pytest.mark.parametrize("where", ["numpy", "numpy in a tuple", "numpy elsewhere", "numba", "bytes"])
def test_a_buffer_that_is_no_tensors_is_found(where: str) -> None:
    ledger, clean, size = leaking(where)
    (entry,) = [e for e in ledger.entries if e.kind == "foreign"]
    assert entry.nbytes == size
    assert entry.maker.startswith("test_ledger.py:")
    assert ledger.held == clean.held + 2 * size


def test_what_another_thread_makes_meanwhile_is_not_the_forward_passes() -> None:
    model, (x, y), made = network(), batch(), []
    asked, answered = threading.Event(), threading.Event()

    def answer() -> None:
        asked.wait()
        made.append(b"x" * (1 << 20))
        made.append(np.ones(1 << 17))
        answered.set()

    def forward() -> Tensor:
        asked.set()
        answered.wait()
        return F.cross_entropy(model(x), y)

    other = threading.Thread(target=answer)
    other.start()
    ledger = take_ledger(model, forward)
    other.join()
    assert len(made) == 2
    assert ledger.held == ledger_of(model).held


def test_where_somebody_traces_already_a_buffer_of_an_earlier_forward_pass_is_not_this_ones() -> None:
    model = network()
    model.relu1 = nn.Sequential(model.relu1, _Leak("numpy elsewhere"))
    size = N * 4 * 16 * 16 * 4
    x, y = batch()
    tracemalloc.start(40)  # enough to reach the call, and quicker than more
    try:
        ledgers = [take_ledger(model, lambda: F.cross_entropy(model(x), y)) for _ in range(2)]
    finally:
        tracemalloc.stop()
    assert len(model.relu1[1].nooks) == 2
    assert [[e.nbytes for e in ledger.entries if e.kind == "foreign"] for ledger in ledgers] == [[size], [size]]


def test_a_small_view_of_a_large_buffer_counts_whole() -> None:
    ledger, _, size = leaking("large")
    (entry,) = ledger.of("relu1.1")
    assert entry.nbytes == size + 4 * 5000
    assert entry.shapes == ((5,),)


def test_a_compressor_that_keeps_the_dense_block_is_found() -> None:
    class Dense(lrbench.Compressor):
        guarantee = "block"

        def factorize(self, blocks: Any) -> lrbench.LowRank:
            D = blocks.dense()
            U, S, Vh = torch.linalg.svd(D, full_matrices=False)
            ranks = (S > 0.1 * S[:, :1]).sum(1)
            self.last = D
            return lrbench.LowRank.from_padded(U, S[:, :, None] * Vh, ranks)

    model = lrbench.wrap(network(), "001000", Dense(0.3), path="backward")
    hidden = [e for e in ledger_of(model).entries if not e.saved]
    assert [(e.kind, e.maker, e.nbytes) for e in hidden] == [("elsewhere", "conv3", N * 36 * 64 * 4)]


def test_a_wrapper_that_keeps_x_is_found() -> None:
    class Keeping(nn.Conv2d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            out = super()._conv_forward(x.detach(), weight, bias)
            out.register_hook(lambda grad: x.sum() and None)
            return out

    model = network()
    model.conv3 = Keeping(4, 8, 3, padding=1)
    model.conv3.weight.requires_grad_(False)
    ((size, entry),) = ledger_of(model).inputs["conv3"]
    assert entry is not None
    assert entry.nbytes == size


def test_a_relu_that_keeps_its_output_is_found_behind_a_compressed_layer() -> None:
    lean = lrbench.lean(lrbench.wrap(network(), "010000", "svd", 0.3, "backward"))
    del vars(lean.relu1)["forward"]
    ((_, entry),) = ledger_of(lean).inputs["conv2"]
    assert entry is not None
    assert entry.holders == ("relu1",)

"""What a wrapped convolution keeps for backward, and how often it compresses."""

import io
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conv_oracle import Counting, layer_of, native, outcome, output_gradient, smooth_images
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.testing import assert_close

import lrbench
from lrbench.conv import PATHS, Path

every_path = pytest.mark.parametrize("path", PATHS)
lean_paths = pytest.mark.parametrize("path", ["both", "backward"])
IMAGES = (3, 4, 9, 12)
BLOCK = 36 * 108  # m·n


def wrapped(path: Path, compressor: lrbench.Compressor | str = "svd", groups: int = 1) -> nn.Conv2d:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=groups, dtype=torch.float64)
    eps = 0.3 if isinstance(compressor, str) else None
    return lrbench.wrap(conv, "1", compressor, eps=eps, path=path)


def noise() -> Tensor:
    """Images that no low rank suits: svd stores their blocks at eps 0.01."""
    return torch.randn(IMAGES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def nodes(output: Tensor) -> Iterator[Node]:
    """Every node of the graph behind a tensor."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def saved_by(node: Node) -> list[Tensor]:
    """The tensors that a node keeps, of Python's functions and of PyTorch's own."""
    values = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    values += getattr(node, "saved_tensors", ())
    return [value for value in values if isinstance(value, Tensor)]


def holds_numbers(value: Any) -> bool:
    """Whether an array hides somewhere in an object."""
    if isinstance(value, Tensor | torch.UntypedStorage | np.ndarray | bytes | bytearray | memoryview | nn.Module):
        return True
    if isinstance(value, dict):
        return any(map(holds_numbers, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(holds_numbers, value))
    return hasattr(value, "__dict__") and any(map(holds_numbers, vars(value).values()))


class Trace(NamedTuple):
    """A forward pass: its output, and what its graph keeps, as the hooks saw it and as the nodes show it."""

    output: Tensor
    packed: list[Tensor]
    saved: list[Tensor]


def trace(layer: nn.Module, x: Tensor) -> Trace:
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(x)
    return Trace(output, packed, [tensor for node in nodes(output) for tensor in saved_by(node)])


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Bytes of each storage by its address."""
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return {address: size for address, size in found.items() if size}


@lean_paths
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_graph_keeps_factors_only(path: Path, batched: bool, groups: int) -> None:
    layer = wrapped(path, groups=groups)
    x = smooth_images(*IMAGES).requires_grad_() + 0
    x = x if batched else x[0]
    result = trace(layer, x)
    assert storages(result.saved) == storages(result.packed)
    factors = [tensor for tensor in result.packed if tensor is not layer.weight]
    block, lowered = BLOCK // groups * x.element_size(), x.numel() * 9 * x.element_size()
    assert not {block, lowered} & set(storages(factors).values())
    assert sum(storages(factors).values()) < lowered // 2
    assert all(tensor.shape[-3:] != x.shape[-3:] for tensor in factors)
    assert x.untyped_storage().data_ptr() not in storages(result.packed)
    # What was packed is what the compressor gives, byte for byte.
    blocks = lrbench.Im2col.of(x if batched else x[None], lrbench.Geometry.of(layer))
    expected = lrbench.get_compressor("svd", eps=0.3).compress(blocks)
    assert set(expected.origin.tolist()) == {int(lrbench.Origin.OWN)}
    assert_close(factors, list(expected.tensors()), rtol=0, atol=0)
    assert sum(storages(factors).values()) == expected.nbytes


@every_path
def test_x_lives_on_only_where_the_path_needs_it(path: Path) -> None:
    layer = wrapped(path)
    x = smooth_images(*IMAGES)
    reference = weakref.ref(x)
    output = layer(x)
    del x
    assert output.requires_grad
    assert (reference() is not None) == (path == "forward")


@every_path
def test_the_context_holds_no_numbers_of_its_own(path: Path) -> None:
    for x in (smooth_images(*IMAGES), noise()):
        output = wrapped(path)(x.requires_grad_())
        contexts = [node for node in nodes(output) if hasattr(node, "saved_tensors")]
        assert len(contexts) == 1
        assert not any(holds_numbers(value) for value in vars(contexts[0]).values())


@lean_paths
def test_stored_blocks_are_kept_as_a_copy_of_their_images_alone(path: Path) -> None:
    x = smooth_images(*IMAGES)
    x[1] = noise()[1]
    layer = lrbench.wrap(nn.Conv2d(4, 8, 3, padding=1, dtype=torch.float64), "1", "svd", eps=0.05, path=path)
    kept = [tensor for tensor in trace(layer, x).packed if tensor.shape[1:] == x.shape[1:]]
    assert_close(kept, [x[1:2]], rtol=0, atol=0)
    assert storages(kept).popitem()[1] == x[1].numel() * x.element_size()


@lean_paths
def test_uncompressed_layers_keep_im2col(path: Path) -> None:
    x = smooth_images(*IMAGES)
    packed = trace(wrapped(path, "none"), x).packed
    assert max(storages(packed).values()) == len(x) * BLOCK * x.element_size()
    assert x.untyped_storage().data_ptr() not in storages(packed)


@pytest.mark.parametrize("compressor", ["svd", "none", "quant4", "topk", "hosvd"])
@pytest.mark.parametrize("x", [smooth_images(*IMAGES), noise()], ids=["factors", "stored"])
@lean_paths
def test_overwriting_x_after_the_forward_pass_changes_no_gradient(path: Path, x: Tensor, compressor: str) -> None:
    layer, x = wrapped(path, compressor), x.clone()
    expected = outcome(layer, x)
    output = layer(x)
    x.fill_(float("nan"))
    grads = torch.autograd.grad(output, [layer.weight, layer.bias], output_gradient(output))
    assert_close(grads, (expected.weight, expected.bias), rtol=0, atol=0)


@lean_paths
def test_the_input_is_kept_by_reference(path: Path) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = smooth_images(*IMAGES).contiguous(memory_format=layout)
        held = storages(trace(wrapped(path, "input"), x).packed)
        assert x.untyped_storage().data_ptr() in held
        assert sum(held.values()) - x.untyped_storage().nbytes() <= 64 + 8 * 36 * 8  # the weight, and the origins


@lean_paths
def test_overwriting_an_input_that_is_kept_is_an_error_as_natively(path: Path) -> None:
    for layer in (native(wrapped(path)), wrapped(path, "input")):
        x = smooth_images(*IMAGES)
        output = layer(x)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@lean_paths
@pytest.mark.parametrize("name", ["quant4", "dct", "pool", "bf16", "hosvd"])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_graph_keeps_the_code_of_an_input_only(path: Path, name: str, groups: int) -> None:
    layer = wrapped(path, lrbench.get_compressor(name, eps=0.3), groups)
    x = smooth_images(*IMAGES).requires_grad_() + 0
    packed = trace(layer, x).packed
    code = [tensor for tensor in packed if tensor is not layer.weight]
    expected = lrbench.get_compressor(name, eps=0.3).compress(lrbench.Im2col.of(x, lrbench.Geometry.of(layer)))
    assert_close(code, list(expected.tensors()), rtol=0, atol=0)
    assert sum(storages(code).values()) == expected.nbytes < x.numel() * x.element_size() / 2
    assert x.untyped_storage().data_ptr() not in storages(packed)


@every_path
def test_overwriting_the_weight_before_backward_is_an_error_as_natively(path: Path) -> None:
    layer = wrapped(path)
    for module in (native(layer), layer):
        output = module(smooth_images(*IMAGES).requires_grad_())
        with torch.no_grad():
            module.weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_overwriting_x_is_an_error_where_x_is_kept() -> None:
    x = smooth_images(*IMAGES)
    output = wrapped("forward")(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@every_path
def test_what_is_kept_is_freed_by_backward(path: Path) -> None:
    output = wrapped(path)(smooth_images(*IMAGES).requires_grad_())
    output.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


class Watching(Counting):
    """Remembers, by weak references, the tensors of the factors that it returned last."""

    def compress(self, blocks: Any, **options: Any) -> lrbench.Factors:
        factors = super().compress(blocks, **options)
        self.returned = [weakref.ref(tensor) for tensor in factors.tensors()]
        return factors

    @property
    def alive(self) -> int:
        return sum(reference() is not None for reference in self.returned)


@every_path
@pytest.mark.parametrize("x", [smooth_images(*IMAGES), noise()], ids=["factors", "stored"])
def test_everything_goes_through_the_hooks_for_saved_tensors(path: Path, x: Tensor) -> None:
    expected = outcome(wrapped(path), x)

    def offload(tensor: Tensor) -> io.BytesIO:
        file = io.BytesIO()
        torch.save(tensor.detach(), file)
        return file

    def fetch(file: io.BytesIO) -> Tensor:
        file.seek(0)
        return torch.load(file)

    layer = wrapped(path, Watching())
    with saved_tensors_hooks(offload, fetch):
        result = outcome(layer, x)
        compressor = layer_of(layer).compressor
        output = layer(x)
        assert output.requires_grad
        assert compressor.alive == 0
    assert_close(result, expected, rtol=0, atol=0)


NEEDS = {  # requires_grad of x, weight and bias: what path both keeps
    (True, True, True): ["weight", "factors"],
    (False, True, True): ["factors"],
    (True, False, True): ["weight"],
    (True, False, False): ["weight"],
    (False, True, False): ["factors"],
    (False, False, True): [],
}


@every_path
@pytest.mark.parametrize("needs", NEEDS, ids=lambda needs: "-".join(map(str, needs)))
def test_nothing_is_kept_or_compressed_that_no_gradient_asks_for(needs: tuple[bool, bool, bool], path: Path) -> None:
    layer = wrapped(path, Counting())
    x = smooth_images(*IMAGES)
    full = outcome(layer, x)
    compressor = layer_of(layer).compressor
    compressor.calls = 0
    wanted = dict(zip(("x", "weight", "bias"), needs, strict=True))
    tensors = {"x": x, "weight": layer.weight, "bias": layer.bias}
    for name, tensor in tensors.items():
        tensor.requires_grad_(wanted[name])
    output, packed, _ = trace(layer, x)
    assert compressor.calls == (path != "backward" or wanted["weight"])

    found = ["weight"] if any(tensor is layer.weight for tensor in packed) else []
    if any(tensor is x for tensor in packed):
        found.append("x")
    if len(packed) > len(found):
        found.append("factors")
    expected = ["x" if kept == "factors" and path == "forward" else kept for kept in NEEDS[needs]]
    assert found == expected

    output.backward(output_gradient(output))
    for name, tensor in tensors.items():
        if wanted[name]:
            # A bias without its weight is summed by torch: a kernel that multiplies meanwhile takes another order.
            alone = name == "bias" and not wanted["weight"]
            exact = output_gradient(output).sum((0, 2, 3)) if alone else getattr(full, name)
            assert_close(tensor.grad, exact, rtol=0, atol=0)
        else:
            assert tensor.grad is None
    assert compressor.calls == (path != "backward" or wanted["weight"])


@every_path
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, nullcontext])
def test_without_a_graph_nothing_is_kept_and_path_backward_compresses_nothing(context: Any, path: Path) -> None:
    layer = wrapped(path, Watching()).requires_grad_(context is not nullcontext)
    compressor = layer_of(layer).compressor
    compressor.returned = []
    with context():
        output = layer(smooth_images(*IMAGES))
    assert not output.requires_grad
    assert compressor.calls == (path != "backward")
    assert compressor.alive == 0


@every_path
def test_each_forward_pass_compresses_once_and_backward_never(path: Path) -> None:
    layer = wrapped(path, Counting())
    compressor = layer_of(layer).compressor
    x = smooth_images(*IMAGES).requires_grad_()
    for passes in (1, 2):
        output = layer(x)
        assert compressor.calls == passes
        output.sum().backward(retain_graph=True)
        output.sum().backward()
        assert compressor.calls == passes

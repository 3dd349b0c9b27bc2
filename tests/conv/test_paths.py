"""Where the approximation acts on each path, against D̂ itself."""

import copy

import pytest
import torch
from conv_oracle import CASES, FEW_CASES, Case, Outcome, layer_of, native, outcome, output_gradient, smooth_images
from torch import Tensor, nn
from torch.testing import assert_close

import lrbench
from lrbench.conv import PATHS, Path

every_path = pytest.mark.parametrize("path", PATHS)
some_geometries = pytest.mark.parametrize("case", FEW_CASES, ids=str)
TIGHT = {"rtol": 1e-11, "atol": 1e-11}


def approximated(case: Case, compressor: lrbench.Compressor) -> tuple[Tensor, Tensor]:
    """W·D̂ + b and G·D̂ᵀ, from a dense D̂."""
    layer, x, g = case.layer(), case.images(), case.options.get("groups", 1)
    exact = layer(x)
    x, geometry = x if x.ndim == 4 else x[None], lrbench.Geometry.of(layer)
    D = compressor.compress(lrbench.Im2col.of(x, geometry)).dense().unflatten(0, (-1, g))
    W = layer.weight.flatten(1).unflatten(0, (g, -1))
    G = output_gradient(exact).reshape(len(x), g, W.shape[1], -1)
    out = torch.einsum("gkm,ngmp->ngkp", W, D).reshape(exact.shape) + layer.bias.view(-1, 1, 1)
    return out.detach(), torch.einsum("ngkp,ngmp->gkm", G, D).reshape(layer.weight.shape)


@every_path
@some_geometries
def test_the_approximation_acts_where_the_path_says(case: Case, path: Path) -> None:
    compressor = lrbench.get_compressor("svd", eps=0.3)
    layer, x = case.layer(), case.images()
    exact = outcome(layer, x)
    output, grad_weight = approximated(case, compressor)
    assert (output - exact.output).norm() > 0.01 * exact.output.norm()
    assert (grad_weight - exact.weight).norm() > 0.01 * exact.weight.norm()
    expected = exact._replace(
        output=exact.output if path == "backward" else output,
        weight=exact.weight if path == "forward" else grad_weight,
    )
    assert_close(outcome(lrbench.wrap(layer, "1", compressor, path=path), x), expected, **TIGHT)


ON_INPUT = ["bf16", "dct", "hosvd", "input", "pool", "quant4", "topk"]


@every_path
@some_geometries
@pytest.mark.parametrize("name", ON_INPUT)
def test_an_encoded_input_acts_where_the_path_says(case: Case, path: Path, name: str) -> None:
    compressor = lrbench.get_compressor(name, eps={"topk": 0.9, "hosvd": 0.6}.get(name, 0.3))
    layer, x = case.layer(), case.images()
    exact = outcome(layer, x)
    output, grad_weight = approximated(case, compressor)
    if name not in ("bf16", "input"):
        assert (output - exact.output).norm() > 0.005 * exact.output.norm()
    expected = exact._replace(
        output=exact.output if path == "backward" else output,
        weight=exact.weight if path == "forward" else grad_weight,
    )
    assert_close(outcome(lrbench.wrap(layer, "1", compressor, path=path), x), expected, **TIGHT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_input_itself_gives_the_native_gradients(case: Case, dtype: torch.dtype) -> None:
    layer, x = case.layer(dtype), case.images(dtype)
    expected = outcome(layer, x)
    result = outcome(lrbench.wrap(layer, "1", "input", path="backward"), x)
    assert torch.equal(result.output, expected.output)
    for ours, theirs in zip(result[1:], expected[1:], strict=True):
        if theirs is not None:  # sums are ordered otherwise where x's gradient is computed with the weight's
            assert (ours - theirs).norm() <= 10 * torch.finfo(dtype).eps * theirs.norm()


def test_the_input_itself_gives_the_native_weight_gradient_bit_for_bit() -> None:
    torch.manual_seed(0)
    for plain in (nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, groups=2)):
        x = torch.rand(5, plain.in_channels, 16, 16)
        layer = lrbench.wrap(copy.deepcopy(plain), "1", "input", path="backward")
        grads = [torch.autograd.grad(net(x).square().sum(), net.weight)[0] for net in (plain, layer)]
        assert torch.equal(*grads)


@some_geometries
def test_random_projections_give_the_weight_gradient_on_average(case: Case) -> None:
    layer, x = case.layer(), case.images()
    exact = outcome(layer, x)
    lrbench.wrap(layer, "1", lrbench.get_compressor("rproj", k=64), path="backward")
    results = [outcome(layer, x) for _ in range(64)]
    assert all(equal(result._replace(weight=exact.weight), exact) for result in results)
    weights = torch.stack([result.weight for result in results])
    assert (weights[0] - weights[1]).norm() > 0.1 * exact.weight.norm()
    # The standard error of a mean of 64, of the Frobenius norm of all entries.
    spread = (weights.var(0).sum() / len(weights)).sqrt()
    assert (weights.mean(0) - exact.weight).norm() < 2 * spread


@pytest.mark.parametrize("path", ["forward", "both"])
def test_a_compressor_that_speaks_against_a_path_is_refused(path: Path) -> None:
    layer = FEW_CASES[0].layer()
    with pytest.raises(ValueError, match=f"rproj is not for layer '' on path {path}: its estimate is unbiased"):
        lrbench.wrap(layer, "1", "rproj", path=path)
    assert not lrbench.compressed_layers(layer)


@pytest.mark.parametrize("compressor", ["rsvd", "aca", "aca-estimate"])
def test_every_compressor_acts_through_its_own_blocks(compressor: str) -> None:
    case = FEW_CASES[1]
    method = lrbench.get_compressor(compressor, eps=0.3)
    output, grad_weight = approximated(case, method)
    result = outcome(lrbench.wrap(case.layer(), "1", method), case.images())
    assert_close((result.output, result.weight), (output, grad_weight), **TIGHT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_path_backward_leaves_the_output_bitwise_native(case: Case, dtype: torch.dtype) -> None:
    layer, x = case.layer(dtype), case.images(dtype)
    expected = layer(x)
    lrbench.wrap(layer, "1", "svd", eps=0.3, path="backward")
    assert torch.equal(layer(x), expected)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)


@every_path
def test_blocks_that_are_stored_take_part_exactly(path: Path) -> None:
    case = FEW_CASES[1]
    layer, x = case.layer(), torch.randn(3, 4, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x[1] = smooth_images(1, 4, 9, 12)[0]
    exact = outcome(layer, x)
    factors = lrbench.get_compressor("svd", eps=0.01).compress(lrbench.Im2col.of(x, lrbench.Geometry.of(layer)))
    assert set(factors.origin.tolist()) == {int(lrbench.Origin.OWN), int(lrbench.Origin.STORED)}
    result = outcome(lrbench.wrap(layer, "1", "svd", eps=0.01, path=path), x)
    assert_close(result.output[[0, 2]], exact.output[[0, 2]], **TIGHT)
    bound = 0.01 * float(exact.output.norm() + exact.weight.norm()) * 10
    assert (result.output - exact.output).norm() < bound
    assert (result.weight - exact.weight).norm() < bound


@every_path
def test_rank_zero_leaves_the_bias_alone(path: Path) -> None:
    layer, x = FEW_CASES[0].layer(), FEW_CASES[0].images()
    exact = outcome(layer, x)
    result = outcome(lrbench.wrap(layer, "1", "svd", eps=1.0, path=path), x)
    if path != "backward":
        assert torch.equal(result.output, layer.bias.detach().view(-1, 1, 1).expand_as(result.output))
    if path != "forward":
        assert not result.weight.any()
    assert_close((result.x, result.bias), (exact.x, exact.bias), **TIGHT)


@pytest.mark.parametrize(("path", "training"), [("forward", True), ("both", True), ("backward", True), ("both", False)])
def test_images_that_are_not_finite_are_named(path: Path, training: bool) -> None:
    layer = lrbench.wrap(nn.Conv2d(4, 6, 3, groups=2), "1", path=path).train(training)
    x = torch.ones(3, 4, 6, 6)
    x[1, 2, 3, 3], x[2, 0, 0, 0] = float("nan"), float("inf")
    with pytest.raises(lrbench.NonFiniteBlockError, match="NaN or infinity") as caught:
        layer(x)
    assert caught.value.indices == [3, 4]


def test_path_backward_lets_images_pass_that_are_not_finite_where_it_compresses_nothing() -> None:
    layer = lrbench.wrap(nn.Conv2d(4, 6, 3), "1", path="backward")
    x = torch.full((1, 4, 6, 6), float("nan"))
    with torch.no_grad():
        assert layer(x).isnan().all()


@every_path
@some_geometries
def test_inference_mode_gives_what_training_gave(case: Case, path: Path) -> None:
    layer = lrbench.wrap(case.layer(), "1", "svd", eps=0.3, path=path)
    # A size that no other test has: the first pass over a size may not be one in inference mode only.
    x = case.images().repeat_interleave(2, dim=-1)[..., : 13 + PATHS.index(path)]
    with torch.inference_mode():
        output = layer(x)
    assert torch.equal(output, layer(x).detach())


@every_path
def test_exact_evaluation_is_native_in_eval_mode_only(path: Path) -> None:
    layer, x = FEW_CASES[0].layer(), FEW_CASES[0].images()
    lrbench.wrap(layer, "1", "svd", eps=0.3, path=path, exact_eval=True)
    exact, compressed = outcome(native(layer), x), outcome(layer, x)
    assert not equal(compressed, exact)
    layer.eval()
    assert equal(outcome(layer, x), exact)
    layer.train()
    assert equal(outcome(layer, x), compressed)


@every_path
def test_evaluation_acts_as_training_by_default(path: Path) -> None:
    layer, x = FEW_CASES[0].layer(), FEW_CASES[0].images()
    lrbench.wrap(layer, "1", "svd", eps=0.3, path=path)
    assert not layer_of(layer).exact_eval
    compressed = outcome(layer, x)
    assert equal(outcome(layer.eval(), x), compressed)


def equal(first: Outcome, second: Outcome) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

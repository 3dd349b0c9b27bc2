"""Factors of a fixed input are computed once, and serve as if they were computed at each step."""

import pytest
import torch
from torch import Tensor, nn

import lrbench
from lrbench import Factors
from lrbench.contract.adversarial import photo_crops


def model(groups: int = 1, path: str = "both", name: str = "svd") -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=groups), nn.ReLU(), nn.Conv2d(6, 2, 3))
    return lrbench.wrap(net, "10", name, 0.1, path)  # type: ignore[arg-type]


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    net(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


@pytest.fixture
def images() -> Tensor:
    x = photo_crops(10).float()
    x[4] = torch.rand(x[4].shape, generator=torch.Generator().manual_seed(0))  # of no low rank: it is stored
    return x


@pytest.mark.parametrize("name", ["svd", "none", "shared", "input", "quant4", "topk", "dct"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("path", ["both", "backward"])
def test_kept_factors_give_the_gradients_that_fresh_ones_give(
    images: Tensor, path: str, groups: int, name: str
) -> None:
    net = model(groups, path, name)
    kept = lrbench.KeptInput(net, images, batch_size=len(images))
    index = torch.tensor([7, 4, 0, 9])
    with kept.batch(index):
        ours = gradients(net, images[index])
    if name == "shared":  # its basis is that of all images
        for mine, exact in zip(ours, gradients(lrbench.unwrap(net), images[index]), strict=True):
            assert (mine - exact).norm() <= 0.2 * exact.norm()
        return
    for mine, theirs in zip(ours, gradients(net, images[index]), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_nothing_is_compressed_again_while_factors_are_given(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    kept = lrbench.KeptInput(net, images)

    def refuse(*_: object, **__: object) -> Factors:
        raise AssertionError("compressed")

    monkeypatch.setattr(lrbench.compressed_layers(net)["0"].compressor, "compress", refuse)
    with kept.batch(torch.arange(3)):
        net(images[:3])
    with pytest.raises(AssertionError, match="compressed"):
        net(images[:3])


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_images_are_not_needed_where_their_factors_are_kept(
    images: Tensor, groups: int, layout: torch.memory_format
) -> None:
    net = model(groups).to(memory_format=layout)  # type: ignore[call-overload]
    kept = lrbench.KeptInput(net, images)
    index = torch.tensor([7, 4, 0, 9])
    with kept.batch(index) as x:
        assert x.shape == images[index].shape
        assert x.untyped_storage().nbytes() == 4
        ours = gradients(net, x)
    with kept.batch(index):
        theirs = gradients(net, images[index].contiguous(memory_format=layout))
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("path", ["backward", "forward"])
def test_whoever_reads_images_that_are_not_there_meets_nan(images: Tensor, path: str) -> None:
    net = model(path=path)
    with lrbench.KeptInput(net, images).batch(torch.arange(3)) as x:
        out = net(x)
    out.sum().backward()
    found = out if path == "backward" else net[0].weight.grad
    assert found is not None
    assert bool(found.isnan().all())


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", ["svd", "none", "quant8", "svd-half", "shared"])
def test_a_view_is_what_is_selected_and_copies_no_rows_that_stay(images: Tensor, name: str, groups: int) -> None:
    half = {"factors": "float16"} if name.endswith("half") else {}
    compressor = lrbench.get_compressor(name.removesuffix("-half"), eps=0.1, **half)
    whole = compressor.compress(lrbench.Im2col(images, 3, padding=1, groups=groups))
    for chosen in ([7, 4, 0, 9, 9], [4], [1, 2], []):
        index = (torch.tensor(chosen, dtype=torch.int64)[:, None] * groups + torch.arange(groups)).flatten()
        view, selected = whole.view(index), whole.select(index)
        again = view.layout.restore(view.tensors())
        deeper = torch.arange(len(index)).flip(0)
        weight, grad = torch.randn(3 * groups, whole.shape[1]), torch.randn(len(index), 3, whole.shape[2])
        for part in (view, again, view.view(deeper).select(deeper), lrbench.Factors.concatenate([view])):
            assert torch.equal(part.dense(), selected.dense())
            assert torch.equal(part.matmul(weight), selected.matmul(weight))
            torch.testing.assert_close(part.gradients(grad), selected.gradients(grad))
            assert part.origin.tolist() == selected.origin.tolist()
            if selected.ranks is not None:
                assert part.ranks is not None
                assert part.ranks.tolist() == selected.ranks.tolist()
        if name == "svd":
            assert isinstance(view, Factors)
            assert isinstance(whole, Factors)
            assert view.V is whole.V
            both = Factors.concatenate([view, view])
            assert isinstance(both, Factors)
            assert torch.equal(both.dense(), torch.cat([selected.dense()] * 2))
            assert len(both.V) == 2 * int(view.offsets[-1])


def test_their_bytes_are_told(images: Tensor) -> None:
    net = model()
    compress = lrbench.get_compressor("svd", eps=0.1).compress
    whole = compress(lrbench.Im2col(images, 3, padding=1)).nbytes
    assert lrbench.KeptInput(net, images, batch_size=len(images)).nbytes == whole
    parts = lrbench.KeptInput(net, images, batch_size=3).nbytes
    assert abs(parts - whole) <= 64


def test_a_batch_that_they_are_not_of_is_refused(images: Tensor) -> None:
    net = model()
    kept = lrbench.KeptInput(net, images)
    with kept.batch(torch.arange(3)), pytest.raises(ValueError, match=r"other than the layer's input, \(4, 3, 9, 9\)"):
        net(images[:4])
    with kept.batch(torch.arange(3)), pytest.raises(ValueError, match="give the batch that the factors are of"):
        net(images[:3, :, :8])
    with kept.batch(torch.tensor([0, 1, 3])), pytest.raises(ValueError, match="give the batch that the factors are of"):
        net(images[:3])


@pytest.mark.parametrize("given", ["images", "their place"])
@pytest.mark.parametrize("first", ["another layer", "the same layer"])
def test_an_input_that_they_are_not_of_is_refused(images: Tensor, given: str, first: str) -> None:
    """A layer on path both does not read its input, and would answer for any."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    other = conv if first == "the same layer" else nn.Conv2d(3, 3, 3, padding=1)
    net = lrbench.wrap(nn.Sequential(other, conv), "01" if other is not conv else "1", "svd", 0.1)
    kept = lrbench.KeptInput(net, images)
    index = torch.arange(3)
    with kept.batch(index) as x, pytest.raises(ValueError, match="calls this layer once, on the images themselves"):
        net(images[index] if given == "images" else x)


def test_images_that_are_prepared_on_the_way_are_known(images: Tensor) -> None:
    """What they are multiplied by and divided by again leaves other roundings."""
    net, index = model(), torch.tensor([2, 0])
    kept = lrbench.KeptInput(net, images)
    prepare = nn.BatchNorm2d(3, affine=False, eps=0)
    assert prepare.running_var is not None
    prepare.running_var.fill_(9)
    prepared = nn.Sequential(prepare, net).eval()
    with kept.batch(index):
        prepared(3.0 * images[index])


def test_a_layer_that_is_not_wrapped_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="layer is '2': name a wrapped one, of which this model has 0"):
        lrbench.KeptInput(model(), images, layer="2")
    with pytest.raises(ValueError, match="of which this model has none"):
        lrbench.KeptInput(lrbench.unwrap(model()), images)


@pytest.mark.parametrize("name", ["svd", "none", "warm"])
def test_parts_of_joined_factors_are_those_of_the_blocks(images: Tensor, name: str) -> None:
    blocks = lrbench.Im2col(images, 3, padding=1)
    compress = lrbench.get_compressor(name, eps=0.1).compress
    joined = Factors.concatenate([compress(blocks.select(slice(k, k + 4))) for k in (0, 4, 8)])
    dense = joined.dense()
    assert (lrbench.relative_error(blocks, joined) <= 0.1).all()
    for chosen in ([3, 4, 4, 9, 0], [4], [1, 2], []):
        index = torch.tensor(chosen, dtype=torch.int64)
        part = joined.select(index)
        assert torch.equal(part.dense(), dense[index])
        assert part.ranks.tolist() == joined.ranks[index].tolist()
        assert part.origin.tolist() == joined.origin[index].tolist()

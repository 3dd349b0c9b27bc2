"""A default device of torch's own is no other place for what lies on the CPU."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import lrbench
from lrbench import Im2col


@pytest.fixture
def elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("name", lrbench.list_compressors())
def test_blocks_stay_where_they_are_whatever_the_default_device_is(name: str, elsewhere: None) -> None:
    x = torch.rand(4, 3, 8, 8, device="cpu")
    blocks = Im2col(x, 3, padding=1)
    compressor = lrbench.get_compressor(name)
    for _ in range(2):
        compressed = compressor.compress(blocks)
        assert lrbench.relative_error(blocks, compressed).device.type == "cpu"
    conv = nn.Conv2d(3, 4, 3, padding=1, device="cpu")
    model = lrbench.wrap(nn.Sequential(conv, nn.ReLU()), "1", name, path="backward" if name == "rproj" else "both")
    model(x).sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.device.type == "cpu"

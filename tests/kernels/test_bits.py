"""Packed gates and places of maxima, beside numpy's own packing and a loop over windows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lrbench.kernels.bits import _pack_in_torch, _spread_in_torch, gated, pack_gate, pack_places, spread

CHUNK = 8 << 15  # elements that a thread takes at a time
SIZES = [0, 1, 7, 8, 9, 4095, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 9, 3 * CHUNK + 4103]


def odd_numbers(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Of both signs, with zeros of both signs, infinities and NaN among them, the last one NaN."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64).to(dtype)
    for k, odd in enumerate((0.0, -0.0, float("inf"), -float("inf"), float("nan"))):
        values[3 + k :: 11] = odd
    values[-1:] = float("nan")
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_a_gate_is_a_bit_for_each_element_that_is_not_at_most_zero(size: int, dtype: torch.dtype) -> None:
    values = odd_numbers(size, dtype)
    expected = np.packbits(~(values.numpy() <= 0), bitorder="little")
    np.testing.assert_array_equal(pack_gate(values).numpy(), expected)


@pytest.mark.parametrize("closed", [None, 0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_a_gate_scales_what_is_open_and_shuts_the_rest(size: int, dtype: torch.dtype, closed: float | None) -> None:
    gate, values = odd_numbers(size, dtype), odd_numbers(size, dtype).flip(0)
    shut = torch.zeros_like(values) if closed is None else values * closed
    expected = torch.where(gate <= 0, shut, values * 1.25)
    result = gated(pack_gate(gate), values, 1.25, closed)
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(result.signbit() | result.isnan(), expected.signbit() | expected.isnan())


pair = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=80, derandomize=True, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 16), st.integers(1, 16)) | pair,
    stride=pair,
    dilation=pair,
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    ceil_mode=st.booleans(),
    planes=st.integers(1, 5),
)
def test_maxima_of_any_window_find_their_places_again(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    share: tuple[float, float],
    ceil_mode: bool,
    planes: int,
) -> None:
    padding = (int(share[0] * (kernel[0] // 2)), int(share[1] * (kernel[1] // 2)))
    for side, k, d, pad in zip(size, kernel, dilation, padding, strict=True):
        assume(side + 2 * pad >= d * (k - 1) + 1)
    x = torch.randn(1, planes, *size, generator=torch.Generator().manual_seed(planes))
    _, indices = F.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)
    window = (kernel, stride, padding, dilation)
    places = pack_places(indices[0], window, size)
    width = next(w for w in (1, 2, 4, 8) if kernel[0] * kernel[1] <= 1 << w)
    assert len(places) == -(-indices.numel() * width // 8)
    grad = torch.randn(indices[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = np.zeros((planes, size[0] * size[1]))
    for plane in range(planes):
        np.add.at(expected[plane], indices[0, plane].flatten().numpy(), grad[plane].flatten().numpy())
    for result in (spread(places, grad, window, size), _spread_in_torch(places, grad, window, size)):
        np.testing.assert_allclose(result.flatten(1).numpy(), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(_pack_in_torch(indices[0], window, size), places)  # what other devices compute

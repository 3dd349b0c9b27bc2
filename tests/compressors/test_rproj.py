"""Random projections: right on average, drawn anew at each call, and taken up where they were left."""

import pytest
import torch
from oracles import geometries

import lrbench
from lrbench import Compressed, Im2col
from lrbench.contract.adversarial import photo_crops
from lrbench.sketched import Sketched


def sketched(compressor: lrbench.Compressor, blocks: Im2col) -> Sketched:
    result = compressor.compress(blocks)
    assert isinstance(result, Sketched)
    return result


def test_what_is_kept_is_the_product_with_the_random_matrix_for_every_geometry() -> None:
    x = torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for arguments in list(geometries(4, 6, 7))[::11]:
        blocks = Im2col(x, **arguments)
        result = sketched(lrbench.get_compressor("rproj", k=5), blocks)
        torch.testing.assert_close(result.U.mT, blocks.dense() @ result.V.T)
        assert ((result.V * 5**0.5).abs() - 1).abs().max() < 1e-12
        assert result.groups == blocks.groups


def test_the_approximation_is_right_on_average() -> None:
    blocks = Im2col(photo_crops(2), 3, padding=1)
    compressor = lrbench.get_compressor("rproj", k=8)
    mean = torch.stack([compressor.compress(blocks).dense() for _ in range(400)]).mean(0)
    D = blocks.dense()
    single = lrbench.relative_error(blocks, compressor.compress(blocks))
    assert (single > 1).all()
    assert ((mean - D).norm(dim=(1, 2)) / D.norm(dim=(1, 2)) < 0.1 * single).all()


def test_each_call_draws_anew_and_a_state_takes_up_the_sequence() -> None:
    blocks = Im2col(photo_crops(2), 3)
    first, other = lrbench.get_compressor("rproj", seed=3), lrbench.get_compressor("rproj", seed=4)
    results = [sketched(first, blocks) for _ in range(2)]
    assert not torch.equal(results[0].V, results[1].V)
    assert not torch.equal(sketched(other, blocks).V, results[0].V)
    again = lrbench.get_compressor("rproj", seed=3)
    again.load_state_dict({"calls": 1})
    assert torch.equal(sketched(again, blocks).U, results[1].U)
    assert again.state_dict() == first.state_dict() == {"calls": 2}


def test_calls_are_joined_each_with_its_matrix() -> None:
    x = photo_crops(7)
    x[5, 0, 0, 0] = torch.nan
    compressor = lrbench.get_compressor("rproj", k=4)
    parts = [compressor.compress(Im2col(part, 3, padding=1), nonfinite="keep") for part in x.split([4, 3])]
    joined = Compressed.concatenate(parts)
    dense = torch.cat([part.dense() for part in parts])
    again = joined.layout.restore(joined.tensors())
    torch.testing.assert_close(again.dense(), dense, equal_nan=True)
    index = torch.tensor([6, 0, 4])
    chosen = joined.select(index)
    assert chosen.ranks is not None
    assert chosen.ranks.tolist() == [4, 4, 4]
    torch.testing.assert_close(chosen.dense(), dense[index])
    grad, weight = torch.ones(3, 2, 81, dtype=torch.float64), torch.ones(2, 27, dtype=torch.float64)
    torch.testing.assert_close(chosen.grad_weight(grad), (grad @ dense[index].mT).sum(0))
    torch.testing.assert_close(chosen.matmul(weight), weight @ dense[index])


def test_k_must_be_positive() -> None:
    with pytest.raises(ValueError, match="k is 0: use a whole number of at least 1"):
        lrbench.get_compressor("rproj", k=0)


def test_sums_beyond_the_dtype_are_stored_as_they_are() -> None:
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[1] *= 3e38
    compressed = lrbench.get_compressor("rproj").compress(Im2col(x, 3, padding=1))
    assert compressed.origin.tolist() == [int(lrbench.Origin.OWN), int(lrbench.Origin.STORED), int(lrbench.Origin.OWN)]
    assert torch.equal(compressed.dense()[1], Im2col(x, 3, padding=1).dense()[1])

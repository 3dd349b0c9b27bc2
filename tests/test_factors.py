"""Packed factors multiply as the dense approximations do, and take the memory that they say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import PLAIN, Allocations, lowered, storage_bytes
from torch import Tensor

import lrbench
from lrbench import Factors, LowRank, Origin

M, N_COLUMNS = 18, 30  # im2col of 2 x 5 x 6 with a 3 x 3 kernel and padding 1
ARGUMENTS = PLAIN | {"padding": (1, 1)}
GEOMETRY = lrbench.Geometry.parse(**ARGUMENTS)
RANKS = [3, 0, 1, 0, 5, 0, 3, 0, 2, 0, 1, 3]
STORED = [1, 3, 9]
KEPT = ("nothing", "images", "matrices", "all_images", "all_matrices")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_low_rank(ranks: list[int], m: int = M, n: int = N_COLUMNS, seed: int = 0) -> LowRank:
    return LowRank(normal(sum(ranks), m, seed=seed), normal(sum(ranks), n, seed=seed + 1), torch.tensor(ranks))


def dense_low_rank(low_rank: LowRank) -> Tensor:
    """The products U_i V_i one by one."""
    sizes = low_rank.ranks.tolist()
    pairs = zip(low_rank.U.split(sizes), low_rank.V.split(sizes), strict=True)
    return torch.stack([torch.from_numpy(U.numpy().T @ V.numpy()) for U, V in pairs])


def example(kept: str, groups: int) -> tuple[Factors, Tensor]:
    """Factors of ragged ranks, some blocks kept as they are, and the blocks that they stand for."""
    stored = {"nothing": []}.get(kept, list(range(len(RANKS))) if kept.startswith("all") else STORED)
    ranks = [0 if i in stored else r for i, r in enumerate(RANKS)]
    low_rank = random_low_rank(ranks)
    D = dense_low_rank(low_rank)
    origin = torch.zeros(len(RANKS), dtype=torch.uint8)
    blocks: lrbench.Im2col | lrbench.DenseBlocks | None = None
    if stored:
        origin[stored] = int(Origin.STORED)
        images = normal(len(stored), 2, 5, 6, seed=5)
        if kept.endswith("images"):
            blocks = lrbench.Im2col.of(images, GEOMETRY)
            D[stored] = torch.from_numpy(lowered(images, ARGUMENTS))
        else:
            D[stored] = normal(len(stored), M, N_COLUMNS, seed=6)
            blocks = lrbench.DenseBlocks(D[stored].clone())
    index = torch.tensor(stored, dtype=torch.int64)
    return Factors(low_rank.U, low_rank.V, low_rank.offsets, origin, index, blocks, groups), D


each_example = pytest.mark.parametrize("kept", KEPT)
each_grouping = pytest.mark.parametrize("groups", [1, 2, 4], ids="groups={}".format)


@each_grouping
@each_example
def test_dense_and_ranks(kept: str, groups: int) -> None:
    factors, D = example(kept, groups)
    stored = factors.kept_index.tolist()
    assert (factors.shape, factors.dtype, factors.device) == (D.shape, D.dtype, D.device)
    torch.testing.assert_close(factors.dense(), D)
    assert factors.ranks.dtype == torch.int64
    assert factors.ranks.tolist() == [M if i in stored else r for i, r in enumerate(RANKS)]


@each_grouping
@each_example
def test_matmul_is_each_groups_weight_times_the_dense_blocks(kept: str, groups: int) -> None:
    factors, D = example(kept, groups)
    K = 3 * groups
    weight = normal(K, M, seed=7)
    expected = torch.stack([weight[i % groups * 3 :][:3] @ block for i, block in enumerate(D)])
    torch.testing.assert_close(factors.matmul(weight), expected)


@each_grouping
@each_example
def test_grad_weight_sums_over_the_images_of_each_group(kept: str, groups: int) -> None:
    factors, D = example(kept, groups)
    grad = normal(len(D), 3, N_COLUMNS, seed=8)
    expected = torch.zeros(groups, 3, M, dtype=torch.float64)
    for i, block in enumerate(D):
        expected[i % groups] += grad[i] @ block.T
    torch.testing.assert_close(factors.grad_weight(grad), expected.flatten(0, 1))
    of_weight, of_bias = factors.gradients(grad)
    torch.testing.assert_close(of_weight, expected.flatten(0, 1))
    torch.testing.assert_close(of_bias, torch.cat([grad[j::groups].sum((0, 2)) for j in range(groups)]))


@each_grouping
@each_example
def test_products_never_form_the_approximations(kept: str, groups: int) -> None:
    factors, D = example(kept, groups)
    # Blocks that are kept dense may be copied, the others not.
    most = len(factors.kept_index) if kept.endswith("matrices") else 0
    weight, grad = normal(groups * 3, M), normal(len(D), 3, N_COLUMNS)
    for multiply in (lambda: factors.matmul(weight), lambda: factors.gradients(grad)):
        with Allocations() as seen:
            multiply()
        formed = [shape for shape in seen.shapes if set(shape[-2:]) == {M, N_COLUMNS} and len(shape) == 3]
        assert all(shape[0] <= most for shape in formed)
        assert most == len(D) or seen.largest < D.nbytes


@pytest.mark.parametrize("as_images", [False, True], ids=["matrices", "images"])
def test_where_all_blocks_are_kept_nothing_is_copied_on_the_way_to_the_products(as_images: bool) -> None:
    images, geometry = normal(5, 3, 8, 8), lrbench.Geometry.parse(**PLAIN | {"padding": (1, 1)})
    blocks = lrbench.Im2col.of(images, geometry)
    kept = blocks if as_images else lrbench.DenseBlocks(blocks.dense())
    N, m, n = kept.shape
    nothing, own = torch.zeros(N + 1, dtype=torch.int64), torch.zeros(N, dtype=torch.uint8)
    factors = Factors(normal(0, m), normal(0, n), nothing, own, torch.arange(N), kept)
    weight, bias = normal(2, m).requires_grad_(), normal(2)  # as a layer's in training
    with torch.no_grad():
        with Allocations() as forward:
            out = factors.matmul(weight, bias)
        with Allocations() as backward:
            factors.grad_weight(out)
    assert forward.fresh == [out.nbytes]
    assert max(backward.fresh) < out.nbytes


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    ranks=st.lists(st.integers(0, 4), min_size=0, max_size=6),
    groups=st.integers(1, 3),
    sides=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    K=st.integers(1, 3),
)
def test_products_of_any_ragged_ranks(ranks: list[int], groups: int, sides: tuple[int, int], K: int) -> None:
    m, n = sides
    ranks = [min(r, m, n) for r in ranks for _ in range(groups)]
    low_rank = random_low_rank(ranks, m, n)
    D = dense_low_rank(low_rank) if ranks else torch.zeros(0, m, n, dtype=torch.float64)
    factors = Factors(low_rank.U, low_rank.V, low_rank.offsets, torch.zeros(len(D), dtype=torch.uint8), groups=groups)
    weight, grad = normal(groups, K, m), normal(len(D), K, n)
    each = torch.arange(len(D)) % groups
    torch.testing.assert_close(factors.dense(), D)
    torch.testing.assert_close(factors.matmul(weight.flatten(0, 1)), weight[each] @ D)
    expected = torch.zeros(groups, K, m, dtype=torch.float64).index_add_(0, each, grad @ D.mT)
    torch.testing.assert_close(factors.grad_weight(grad), expected.flatten(0, 1))


@each_example
def test_nbytes_counts_every_storage_once(kept: str) -> None:
    factors, D = example(kept, 1)
    N, K = len(D), len(factors.kept_index)
    held = {"images": K * 2 * 5 * 6 * 8, "matrices": K * M * N_COLUMNS * 8}.get(kept.removeprefix("all_"), 0)
    packed = int(factors.offsets[-1]) * (M + N_COLUMNS) * 8
    assert factors.nbytes == storage_bytes(factors.tensors()) == packed + 8 * (N + 1) + N + 8 * K + held
    factors.V = factors.U
    assert factors.nbytes == storage_bytes(factors.tensors()) < packed + 8 * (N + 1) + N + 8 * K + held + 1


def test_nbytes_counts_the_whole_storage_behind_a_view() -> None:
    """What is padded is not packed, whatever shape it is given."""
    factors, _ = example("nothing", 1)
    packed = factors.nbytes
    padded = torch.zeros(10 * len(factors.V), N_COLUMNS, dtype=torch.float64)
    padded[: len(factors.V)] = factors.V
    factors.V = padded[: len(factors.V)]
    assert factors.nbytes == packed + 9 * len(factors.V) * N_COLUMNS * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_compressed_blocks_take_their_factors_and_their_bookkeeping(dtype: torch.dtype, groups: int) -> None:
    x = normal(6, 2 * groups, 8, 8, dtype=dtype).cumsum(2).cumsum(3)
    factors = lrbench.get_compressor("svd", eps=0.3).compress(lrbench.Im2col(x, 3, padding=1, groups=groups))
    N, m, n = factors.shape
    assert factors.kept is None
    assert factors.nbytes == int(factors.ranks.sum()) * (m + n) * dtype.itemsize + 8 * (N + 1) + N


@pytest.mark.parametrize("source", ["images", "matrices"])
def test_stored_blocks_are_copies_that_do_not_keep_the_batch_alive(source: str) -> None:
    x = normal(8, 1, 6, 6)
    x[[0, 1, 3, 4, 5, 6, 7]] = 1
    blocks = lrbench.Im2col(x, 3) if source == "images" else lrbench.Im2col(x, 3).dense()
    factors = lrbench.get_compressor("svd", eps=0.01).compress(blocks)
    assert factors.kept_index.tolist() == [2]
    assert factors.origin.tolist() == [0, 0, 2, 0, 0, 0, 0, 0]
    assert factors.kept is not None
    kept = factors.kept.tensor
    numbers = 6 * 6 if source == "images" else 9 * 16
    assert kept.untyped_storage().nbytes() == numbers * 8
    batch = x if source == "images" else blocks
    assert kept.untyped_storage().data_ptr() != batch.untyped_storage().data_ptr()  # type: ignore[union-attr]
    before = factors.dense()
    batch.zero_()  # type: ignore[union-attr]
    assert torch.equal(factors.dense(), before)
    torch.testing.assert_close(factors.kept.dense()[0], before[2])


@each_grouping
@each_example
def test_tensors_and_layout_make_the_same_factors_again(kept: str, groups: int) -> None:
    factors, D = example(kept, groups)
    again = factors.layout.restore(tuple(tensor.clone() for tensor in factors.tensors()))
    assert (again.groups, again.shape, again.nbytes) == (factors.groups, factors.shape, factors.nbytes)
    assert type(again.kept) is type(factors.kept)
    for ours, theirs in zip(again.tensors(), factors.tensors(), strict=True):
        assert torch.equal(ours, theirs)
    weight, grad = normal(groups * 3, M), normal(len(D), 3, N_COLUMNS)
    assert torch.equal(again.ranks, factors.ranks)
    assert torch.equal(again.dense(), factors.dense())
    assert torch.equal(again.matmul(weight), factors.matmul(weight))
    assert torch.equal(again.grad_weight(grad), factors.grad_weight(grad))


@pytest.mark.parametrize("stored_as", ["stored", "whole"])
def test_factors_of_a_grouped_convolution_convolve(stored_as: str) -> None:
    """With blocks that are stored, and with all of them whole: the very output and weight gradient of Conv2d."""
    x = normal(3, 4, 7, 7)
    x[1] = 0
    x[1, :, 3, 3] = 1  # one image whose blocks are of low rank
    conv = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False, dtype=torch.float64)
    y = conv(x)
    grad = normal(*y.shape, seed=3)
    y.backward(grad)
    compressor = lrbench.get_compressor("svd" if stored_as == "stored" else "none", eps=1e-9)
    factors = compressor.compress(lrbench.Im2col.of(x, lrbench.Geometry.of(conv)))
    assert factors.groups == 2
    assert len(factors.kept_index) == {"stored": 4, "whole": 6}[stored_as]
    weight = conv.weight.detach().flatten(1)
    torch.testing.assert_close(factors.matmul(weight).reshape(y.shape), y.detach())
    weight_grad = factors.grad_weight(grad.reshape(6, 3, -1))
    torch.testing.assert_close(weight_grad.reshape(conv.weight.shape), conv.weight.grad)


@pytest.mark.parametrize(("groups", "shape"), [(1, (4, M + 1)), (1, (M,)), (2, (3, M)), (1, (1, 4, M))])
def test_a_weight_of_another_shape_is_refused(groups: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"K, {M}"):
        example("images", groups)[0].matmul(normal(*shape))


@pytest.mark.parametrize(
    "shape",
    [(len(RANKS) + 1, 3, N_COLUMNS), (len(RANKS) - 1, 3, N_COLUMNS), (len(RANKS), 3, N_COLUMNS - 1), (3, N_COLUMNS)],
    ids=["one_image_too_many", "one_too_few", "too_narrow", "no_batch"],
)
def test_a_gradient_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{N_COLUMNS}"):
        example("nothing", 1)[0].grad_weight(normal(*shape))


def test_products_under_autocast_keep_the_factors_dtype() -> None:
    low_rank = random_low_rank([2, 0, 3])
    factors = Factors(low_rank.U.float(), low_rank.V.float(), low_rank.offsets, torch.zeros(3, dtype=torch.uint8))
    weight, grad = normal(4, M, dtype=torch.float32), normal(3, 4, N_COLUMNS, dtype=torch.float32)
    D = dense_low_rank(low_rank)
    with torch.autocast("cpu", torch.bfloat16):
        results = (factors.dense(), factors.matmul(weight), factors.grad_weight(grad))
    expected = (D, weight.double() @ D, (grad.double() @ D.mT).sum(0))
    for ours, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


def test_packing_takes_the_leading_columns_of_padded_factors() -> None:
    U, V = normal(4, M, 5), normal(4, 5, N_COLUMNS, seed=1)
    packed = LowRank.from_padded(U, V, torch.tensor([2, 0, 5, 1]))
    assert packed.offsets.tolist() == [0, 2, 2, 7, 8]
    assert packed.U.shape == (8, M)
    expected = torch.stack([U[i, :, :r] @ V[i, :r] for i, r in enumerate([2, 0, 5, 1])])
    torch.testing.assert_close(dense_low_rank(packed), expected)


@pytest.mark.parametrize("index", [[0], [4, 2, 0], [1, 3, 5], [2, 2, 2], [], list(range(len(RANKS)))], ids=str)
def test_selected_blocks_keep_their_factors(index: list[int]) -> None:
    whole = random_low_rank(RANKS)
    chosen = whole.select(torch.tensor(index, dtype=torch.int64))
    assert chosen.ranks.tolist() == [RANKS[i] for i in index]
    assert len(chosen.U) == len(chosen.V) == sum(RANKS[i] for i in index)
    if index:
        assert torch.equal(dense_low_rank(chosen), dense_low_rank(whole)[index])


def test_low_rank_part_of_factors() -> None:
    factors, D = example("images", 1)
    torch.testing.assert_close(dense_low_rank(factors.low_rank(torch.tensor([4, 0]))), D[[4, 0]])
    assert factors.low_rank().ranks.tolist() == [0 if i in STORED else r for i, r in enumerate(RANKS)]


@pytest.mark.parametrize("places", [[1], [0, 5], [5, 0], [2, 3, 4], [11, 7, 1]], ids=str)
def test_replaced_blocks_take_their_places_and_the_others_stay(places: list[int]) -> None:
    whole = random_low_rank(RANKS)
    other = random_low_rank([4, 0, 2][: len(places)], seed=9)
    replaced = whole.replace(torch.tensor(places), other)
    expected = dense_low_rank(whole)
    expected[places] = dense_low_rank(other)
    assert torch.equal(dense_low_rank(replaced), expected)
    assert torch.equal(dense_low_rank(whole), dense_low_rank(random_low_rank(RANKS)))  # the original is as it was


def test_concatenated_batches_follow_each_other() -> None:
    parts = [random_low_rank(ranks, seed=seed) for seed, ranks in enumerate([[1, 0], [3], [0, 0, 2]])]
    joined = LowRank.concatenate(parts)
    assert joined.ranks.tolist() == [1, 0, 3, 0, 0, 2]
    assert joined.offsets.tolist() == [0, 1, 1, 4, 4, 4, 6]
    assert torch.equal(dense_low_rank(joined), torch.cat([dense_low_rank(part) for part in parts]))


def test_a_product_with_what_requires_a_gradient_can_be_differentiated() -> None:
    factors, D = example("nothing", 1)
    weight, bias = normal(4, M).requires_grad_(), normal(4).requires_grad_()
    out = factors.matmul(weight, bias)
    torch.testing.assert_close(out, weight @ D + bias[:, None])
    out.sum().backward()
    torch.testing.assert_close(weight.grad, D.sum((0, 2)).expand(4, -1))
    torch.testing.assert_close(bias.grad, torch.full((4,), float(len(D) * D.shape[2]), dtype=torch.float64))


def test_products_take_their_arguments_by_name() -> None:
    factors = lrbench.get_compressor("svd", eps=0.1).compress(normal(3, 6, 20))
    weight, bias = normal(4, 6, seed=1), normal(4, seed=2)
    product = factors.matmul(weight=weight, bias=bias, channels_last=True)
    torch.testing.assert_close(product, factors.matmul(weight, bias))
    assert factors.grad_weight(grad=normal(3, 4, 20)).shape == (4, 6)


@pytest.mark.parametrize("groups", [1, 2])
def test_products_carry_a_graph(groups: int) -> None:
    factors = lrbench.get_compressor("svd", eps=0.1).compress(lrbench.Im2col(normal(2, 4, 6, 6), 3, groups=groups))
    grad = normal(2 * groups, 3, 16).requires_grad_()
    factors.grad_weight(grad).sum().backward()
    expected = torch.stack([D.sum(0) for D in factors.dense()])[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(grad.grad, expected)

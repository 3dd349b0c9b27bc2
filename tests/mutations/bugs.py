"""The bugs: what is replaced by what, and the tests that must find it.

Each stands for a mistake that somebody has made, or that a reviewer should ask about. Where one is not found, the tests
are to be made stronger, not the bug.
"""

from dataclasses import dataclass

__all__ = ["BUGS", "Bug"]


@dataclass(frozen=True)
class Bug:
    """A change to the package.

    Attributes
    ----------
    name : str
        What is wrong then.
    file : str
        In ``lrbench``.
    old, new : str
        The text that is replaced, of which the file holds one, and what it is replaced by.
    tests : str
        A file in ``tests``.
    select : str
        Which of its tests, as ``pytest -k`` takes it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    select: str


CERTIFICATE = "compressors/test_certificate.py"
CONTRACT = "compressors/test_contract.py"

BUGS = [
    # What is promised
    Bug(
        "stop on the estimate",
        "compressors/aca.py",
        'stop="residual", most=self.largest_rank(blocks))',
        'stop="estimate")',
        "compressors/test_aca.py",
        "takes_the_same_pivots_until_the_residual_is_small",
    ),
    Bug(
        "what is left told without the last cross's own energy",
        "kernels/pivots.py",
        "last[k] * (2 * g[k] + last[k] * size)",
        "last[k] * (2 * g[k])",
        "compressors/test_aca.py",
        "takes_the_same_pivots_until_the_residual_is_small",
    ),
    Bug(
        "a pivot's place counted without the padding",
        "kernels/pivots.py",
        "np.float64(row[column]), column // span * layout.pitch + column % span",
        "np.float64(row[column]), column",
        "kernels/test_kernel_blocks.py",
        "pivots_of_images",
    ),
    Bug(
        "what a vector holds behind a row left in a cross",
        "kernels/pivots.py",
        "    row[len(values) : len(values) + w] = 0\n",
        "",
        "kernels/test_kernel_blocks.py",
        "pivots_of_images",
    ),
    Bug(
        "no more room than for last time's ranks",
        "kernels/kernel_blocks.py",
        "done = int(np.argmin(ends)) - 1",
        "done = int(np.argmin(ends))",
        "kernels/test_kernel_blocks.py",
        "room_for_crosses",
    ),
    Bug(
        "missing cross term in the norm",
        "kernels/crosses.py",
        "                norm += 2 * _product(U[k], u) * _product(V[k], v)",
        "                norm += 0.0",
        "compressors/test_aca.py",
        "the_papers_variant_is_the_textbooks",
    ),
    Bug(
        "hidden rank cap",
        "compressors/spectral.py",
        "    vectors, ranks = view.bases(side, INSIDE * eps)\n",
        "    vectors, ranks = view.bases(side, INSIDE * eps)\n    ranks = ranks.clamp(max=8)\n",
        "compressors/test_svd.py",
        "the_rank_is_the_least",
    ),
    Bug(
        "float32 Gram matrix",
        "kernels/gram.py",
        "            row[j] = z[first[j]]\n",
        "            row[j] = np.float32(z[first[j]])\n",
        "kernels/test_kernel_blocks.py",
        "gram_matrices_are_those_of_the_blocks",
    ),
    Bug(
        "tolerance relative to the largest singular value",
        "compressors/spectral.py",
        "(lost > total[:, None] * (INSIDE * eps) ** 2)",
        "(lost > energies[:, -1:] * (INSIDE * eps) ** 2)",
        "compressors/test_svd.py",
        "below_the_gram_matrixs_reach or the_rank_is_the_least or truncation_counts",
    ),
    Bug(
        "tolerance not squared",
        "compressors/spectral.py",
        "(lost > total[:, None] * (INSIDE * eps) ** 2)",
        "(lost > total[:, None] * (INSIDE * eps))",
        "compressors/test_svd.py",
        "below_the_gram_matrixs_reach or the_rank_is_the_least or truncation_counts",
    ),
    Bug(
        "check skipped",
        "compressors/base.py",
        "        factors, kept = check(work, proposal, exponent, self.eps, dtype)\n",
        "        factors, kept = check(work, proposal, exponent, self.eps, dtype)\n        kept = torch.ones_like(kept)\n",
        CERTIFICATE,
        "escalated",
    ),
    Bug(
        "check of the factors as computed, not as stored",
        "compressors/certificate.py",
        "        squared, energy = _residuals(blocks, factors, exponent, single=eps >= _SINGLE_LIMIT)\n"
        "        kept = squared <= eps**2 * energy\n"
        "        if eps >= _SINGLE_LIMIT:\n",
        "        computed = unscaled(proposal.to(torch.float64), exponent)\n"
        "        squared, energy = _residuals(blocks, computed, exponent)\n"
        "        kept = squared <= eps**2 * energy\n"
        "        if False:\n",
        CERTIFICATE,
        "only_rounding_to_their_dtype",
    ),
    Bug(
        "slack in the verdict",
        "compressors/certificate.py",
        "        kept[index] = squared <= eps**2 * energy\n",
        "        kept[index] = squared <= 1.01 * eps**2 * energy\n",
        CERTIFICATE,
        "the_least_overshoot_is_seen",
    ),
    Bug(
        "rounding left out of a shared basis' loss",
        "compressors/certificate.py",
        "torch.where(plain, energy - held + slack, torch.inf)",
        "torch.where(plain, energy - held, torch.inf)",
        "compressors/test_pooled.py",
        "rounding_of_the_projection_hides",
    ),
    Bug(
        "rounding left out of a projection's loss in float32",
        "kernels/project.py",
        "        squared[b] = max(0.0, norm - held) + rounding + terms * 1.2e-16 * (norm + held)\n",
        "        squared[b] = max(0.0, norm - held)\n",
        "kernels/test_kernel_blocks.py",
        "what_float32_tells_of_a_loss or projection_and_residual",
    ),
    Bug(
        "rounding of a Gram matrix left to decide on a rank",
        "kernels/spectral.py",
        "            if doubts[b - first] * (1 + np.sqrt(max(0, ranks[b]))) > margins[b - first]:\n",
        "            if False:\n",
        "kernels/test_kernel_blocks.py",
        "no_rounding_to_float32_decides",
    ),
    Bug(
        "a bound of a Gram matrix's rounding that is none",
        "kernels/gram.py",
        "layout.R * layout.S * energy",
        "layout.R * layout.S * energy * 1e-3",
        "kernels/test_kernel_blocks.py",
        "float32_is_off_by_no_more",
    ),
    Bug(
        "a cross not counted where a pivot row has it",
        "kernels/residual.py",
        "        needed[four] = k + 1 if found",
        "        needed[four] = k if found",
        "kernels/test_kernel_blocks.py",
        "tile_by_tile",
    ),
    Bug(
        "a lane that is done goes on with the others",
        "kernels/several.py",
        "            square = choose(low, here, s * p, square)\n",
        "            square = s * p\n",
        "kernels/test_several.py",
        "",
    ),
    Bug(
        "factors larger than the block",
        "compressors/spectral.py",
        "    return math.floor(ratio * m * n / (m + n))\n",
        "    return min(m, n)\n",
        CONTRACT,
        "factors_are_never_larger_than_the_block and svd",
    ),
    Bug(
        "blocks not scaled",
        "compressors/base.py",
        "    return exponent.to(torch.int64) - (mantissa == 0.5).to(torch.int64)\n",
        "    return 0 * exponent.to(torch.int64)\n",
        CONTRACT,
        "promised_tolerance_is_kept and svd",
    ),
    Bug(
        "a bad block reaches its neighbours",
        "compressors/base.py",
        "            finite = without(blocks, bad)\n",
        "            finite = blocks\n",
        CONTRACT,
        "kept_blocks_leave_their_neighbours_alone and (shared or svd)",
    ),
    Bug(
        "warm start from random",
        "compressors/warm.py",
        "        proposal = self._extended(blocks, known.to(blocks.device, blocks.dtype), total)\n",
        "        import torch\n\n"
        "        start = torch.randn(*known.shape[::-1], generator=torch.Generator().manual_seed(self._calls))\n"
        "        known = torch.linalg.qr(start).Q.T\n"
        "        proposal = self._extended(blocks, known.to(blocks.device, blocks.dtype), total)\n",
        "compressors/test_pooled.py",
        "warm_basis or refresh",
    ),
    Bug(
        "random numbers from torch's global generator",
        "compressors/draws.py",
        "torch.randn(columns, n, generator=generator, dtype",
        "torch.randn(columns, n, dtype",
        CONTRACT,
        "global_generator",
    ),
    Bug(
        "pivot chosen without the magnitude",
        "kernels/crosses.py",
        "        if unused[i] and abs(u[i]) > best:\n            best, row = abs(u[i]), i\n",
        "        if unused[i] and u[i] > best:\n            best, row = u[i], i\n",
        "compressors/test_aca.py",
        "the_papers_variant_is_the_textbooks or magnitude_of_either_sign",
    ),
    # Blocks that are never lowered
    Bug(
        "every pixel counted as often in the norm",
        "im2col.py",
        "        weights = self.multiplicity()\n        if self.device",
        "        weights = torch.full_like(self.multiplicity(), self.geometry.kernel_size[0] * self.geometry.kernel_size[1])\n"
        "        if self.device",
        "test_im2col.py",
        "grams_norms_and_products",
    ),
    Bug(
        "border lines left in the Gram matrix",
        "kernels/gram.py",
        "            out[k] = _dot_at(P, i, P2, j, length)\n",
        "            out[k] = 0.0\n",
        "kernels/test_kernel_blocks.py",
        "gram_matrices_are_those_of_the_blocks",
    ),
    Bug(
        "border columns left in the Gram matrix",
        "kernels/gram.py",
        "            out[k] = _dot_at(Q, i, Q2, j, length)\n",
        "            out[k] = 0.0\n",
        "kernels/test_kernel_blocks.py",
        "gram_matrices_are_those_of_the_blocks",
    ),
    Bug(
        "padding on the wrong side",
        "im2col.py",
        "            frame = (left, total[1] - left, top, total[0] - top)\n",
        "            frame = (total[1] - left, left, total[0] - top, top)\n",
        "test_im2col.py",
        "dense_is_unfold_for_every_geometry",
    ),
    # Factors
    Bug(
        "padded storage counted as packed",
        "compressed.py",
        "t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t",
        "t.data_ptr(): t.numel() * t.itemsize for t",
        "test_factors.py",
        "nbytes_counts",
    ),
    Bug(
        "wrong weight for groups",
        "factors.py",
        "self.U[first] @ W[index % g].mT).mT",
        "self.U[first] @ W[index // len(index) % g].mT).mT",
        "test_factors.py",
        "matmul_is_each_groups_weight",
    ),
    Bug(
        "gradients of all groups in the first",
        "factors.py",
        "                out.index_add_(0, index % g,",
        "                out.index_add_(0, index * 0,",
        "test_factors.py",
        "grad_weight_sums_over_the_images_of_each_group",
    ),
    Bug(
        "stored blocks left out of the weight's gradient",
        "factors.py",
        "            out[j] += kept.grad_weight(grad[places])\n",
        "            pass\n",
        "test_factors.py",
        "grad_weight_sums_over_the_images_of_each_group",
    ),
    # What a layer keeps
    Bug(
        "the input kept beside the factors",
        "conv.py",
        "        ctx.geometry, ctx.path = geometry, path\n",
        "        ctx.geometry, ctx.path, ctx.x = geometry, path, x\n",
        "conv/test_kept.py",
        "x_lives_on_only or holds_no_numbers_of_its_own",
    ),
    Bug(
        "path forward acts in the gradient, too",
        "conv.py",
        '        if needs_weight and path == "forward":\n'
        "            saved.append(x)\n"
        "        elif needs_weight and kept is not None:\n"
        "            saved += kept.tensors()\n"
        "            ctx.layout = kept.layout\n"
        "        ctx.save_for_backward(*saved)\n"
        "        ctx.geometry, ctx.path = geometry, path\n",
        "        if needs_weight and kept is not None:\n"
        "            saved += kept.tensors()\n"
        "            ctx.layout = kept.layout\n"
        "        ctx.save_for_backward(*saved)\n"
        '        ctx.geometry, ctx.path = geometry, "both"\n',
        "conv/test_paths.py",
        "the_approximation_acts_where_the_path_says",
    ),
    Bug(
        "path backward acts in the product, too",
        "conv.py",
        '        if path == "backward" or kept is None:\n',
        "        if kept is None:\n",
        "conv/test_paths.py",
        "the_approximation_acts_where_the_path_says or leaves_the_output_bitwise_native",
    ),
    Bug(
        "evaluation moves a compressor's state on",
        "conv.py",
        "self.compressor if self.conv.training else copy.deepcopy(self.compressor)",
        "self.compressor",
        "conv/test_wrapping.py",
        "what_evaluation_meets_leaves_no_trace",
    ),
    # What is measured
    Bug(
        "only what autograd saved counts as held",
        "measure/ledger.py",
        '        return self.total("graph", "state", "elsewhere", "foreign")\n',
        '        return self.total("graph")\n',
        "measure/test_ledger.py",
        "hidden and closure",
    ),
    Bug(
        "an input that two layers read freed twice",
        "measure/savings.py",
        "if was and next((h for h in was.holders if h in layers), name) == name]\n",
        "if was]\n",
        "measure/test_savings.py",
        "two_layers_read",
    ),
    Bug(
        "an input that a ReLU keeps counted as freed",
        "measure/savings.py",
        "zip(entries, others, strict=True) if other is None)\n",
        "zip(entries, others, strict=True))\n",
        "measure/test_savings.py",
        "what_is_saved_of_an_input_is_named_by_layer",
    ),
    Bug(
        "violations within a percent overlooked",
        "measure/error.py",
        "(errors <= eps * (1 + 1e-12))",
        "(errors <= eps * 1.01)",
        "measure/test_error.py",
        "violations_are_counted",
    ),
    # Runs and their names
    Bug(
        "a run's name hangs on the order of keys",
        "store.py",
        "sort_keys=True, separators",
        "sort_keys=False, separators",
        "test_store.py",
        "whatever_the_order_of_its_keys",
    ),
    Bug(
        "a run's name does not hold what the code was",
        "compressors/from_file.py",
        """    return f"{_attribute(cls)}@{cls.__module__.removeprefix(_PREFIX)}"\n""",
        "    return _attribute(cls)\n",
        "test_compressor_files.py",
        "holds_the_code_and_not_the_path",
    ),
    Bug(
        "a policy's name does not hold the version",
        "policy.py",
        '"version": made.version}',
        '"version": 1}',
        "test_policy.py",
        "identity",
    ),
    Bug(
        "every epoch in the same order",
        "training.py",
        'manual_seed(_derived(config.seed, "order", epoch))',
        'manual_seed(_derived(config.seed, "order"))',
        "test_training.py",
        "order",
    ),
    Bug(
        "dropout not fixed by the seed",
        "training.py",
        '        torch.manual_seed(_derived(config.seed, "dropout", epoch, *others))\n',
        "",
        "test_training.py",
        "stopped or a_seed_fixes",
    ),
    Bug(
        "a compressor's state left out of the checkpoint",
        "training.py",
        "        layer.compressor.load_state_dict(compressors[name])\n",
        "        pass\n",
        "test_training.py",
        "own_state_is_resumed",
    ),
    # The report
    Bug(
        "masks read as numbers",
        "report/tables.py",
        "pd.read_csv(path, dtype=_TYPES, keep",
        "pd.read_csv(path, keep",
        "report/test_tables.py",
        "masks_survive_the_csv",
    ),
    Bug(
        "interval of the wrong number of degrees of freedom",
        "report/summaries.py",
        "np.std(differences, ddof=1)",
        "np.std(differences, ddof=0)",
        "report/test_verdicts.py",
        "the_paired_interval_is_students",
    ),
    Bug(
        "seeds paired by their order",
        "report/summaries.py",
        "100 * (value - reference[seed][0]) for seed, value in pairs.items()}",
        "100 * (value - list(reference.values())[k][0]) for k, (seed, value) in enumerate(pairs.items())}",
        "report/test_verdicts.py",
        "missing_does_not_shift_the_pairs",
    ),
    Bug(
        "what did not learn among the best",
        "report/prices.py",
        "priced_by(prices, kind) if cell.learnt]\n    spots",
        "priced_by(prices, kind)]\n    spots",
        "report/test_prices.py",
        "did_not_learn",
    ),
    # Measuring
    Bug(
        "what padding put between the lines counted in the residual",
        "kernels/residual.py",
        "        counted[y * span : y * span + layout.columns] = 1\n",
        "        counted[y * span : (y + 1) * span] = 1\n",
        "kernels/test_kernel_blocks.py",
        "tile_by_tile",
    ),
    Bug(
        "rows that fill the last four counted in the residual",
        "kernels/residual.py",
        "    for i in range(m):\n        for t in range(width(P)):\n",
        "    for i in range(len(sums)):\n        for t in range(width(P)):\n",
        "kernels/test_kernel_blocks.py",
        "tile_by_tile",
    ),
    Bug(
        "an allocator that keeps memory",
        "measure/memory.py",
        'if not name.startswith("MALLOC_")}',
        'if name != "MALLOC_"}',
        "measure/test_memory.py",
        "told_to_keep",
    ),
    Bug(
        "kept blocks copied on the way to their products",
        "blocks.py",
        "torch.bmm(weight.expand(len(self._values), *weight.shape), self._values)",
        "torch.matmul(weight, self._values)",
        "test_factors.py",
        "nothing_is_copied",
    ),
    Bug(
        "a block of higher rank left in the row of ones",
        "kernels/product.py",
        "        rows[rank] = 1\n",
        "        rows[highest] = 1\n",
        "kernels/test_product.py",
        "ragged_products",
    ),
]

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from runs import photos

import lrbench.sizes as sizes
from lrbench.datasets import read_records
from lrbench.sizes import measure_sizes

CERTIFIED = ["aca", "rsvd", "svd"]


def test_a_row_is_the_mean_over_batches_of_what_the_factors_take():
    images = photos().train_images[:200]
    (row,) = measure_sizes(images, ["svd"], [0.1]).to_dict("records")
    D = torch.nn.functional.unfold(images.double() / 255, 3, padding=1)
    singular = torch.linalg.svdvals(D)
    tails = singular.square().flip(1).cumsum(1)
    ranks = (tails > (0.1 * singular.square().sum(1).sqrt()[:, None]).square()).sum(1)
    assert row["mean_rank"] == pytest.approx(ranks.double().mean().item(), rel=1e-3)
    assert row["UV_bytes"] == pytest.approx(ranks.sum().item() / 2 * (27 + 1024) * 4, rel=1e-3)
    assert row["im2col_bytes"] == 100 * 27 * 1024 * 4
    assert row["input_bytes"] == 100 * 3 * 1024 * 4
    assert row["cut_im2col"] == pytest.approx(1 - row["UV_bytes"] / row["im2col_bytes"])
    assert row["cut_input"] == pytest.approx(1 - row["UV_bytes"] / row["input_bytes"])
    assert row["saved_bytes"] == 0, "the caller holds the batch"
    assert row["cut_saved"] is None
    assert row["UV_bytes"] < row["held_bytes"] < 1.01 * row["UV_bytes"]
    assert row["violations"] == 0
    assert row["share_own"] == 1


@pytest.mark.usefixtures("registry_of_its_own")
def test_a_compressor_without_tolerance_need_not_take_one(tmp_path):
    file = tmp_path / "ranked.py"
    file.write_text(
        "import torch\nimport lrbench\n"
        "class Ranked(lrbench.Compressor):\n"
        "    uses_eps = False\n"
        "    def __init__(self, rank=2):\n"
        "        super().__init__()\n"
        "        self.rank = rank\n"
        "    def factorize(self, blocks):\n"
        "        D = blocks.dense()\n"
        "        U, S, V = torch.linalg.svd(D, full_matrices=False)\n"
        "        ranks = torch.full((len(D),), self.rank)\n"
        "        return lrbench.LowRank.from_padded(U[:, :, :2] * S[:, None, :2], V[:, :2], ranks)\n"
    )
    table = measure_sizes(photos().train_images[:100], [f"{file}:Ranked"], [0.3, 0.1])
    assert table["mean_rank"].tolist() == [2]


def test_a_compressor_without_tolerance_has_one_row_and_cuts_nothing():
    table = measure_sizes(photos().train_images[:100], ["none", "aca-estimate"], [0.3, 0.1])
    assert list(zip(table["compressor"], table["eps"].fillna(0), strict=True)) == [
        ("none", 0),
        ("aca-estimate", 0.3),
        ("aca-estimate", 0.1),
    ]
    assert table["cut_im2col"][0] == 0
    assert (table["violations"][1:] > 0).all()


@pytest.mark.usefixtures("registry_of_its_own")
def test_stored_blocks_count_in_their_own_precision_beside_half_factors(tmp_path):
    half = tmp_path / "half.py"
    half.write_text(
        "from lrbench.compressors.svd import TruncatedSVD\n\n\n"
        "class Half(TruncatedSVD):\n"
        "    def __init__(self, eps=0.1):\n"
        "        super().__init__(eps, factors='bfloat16')\n"
    )
    table = measure_sizes(photos().train_images[:100], [f"{half}:Half"], [0.3, 1e-5])
    few, all_ = table.to_dict("records")
    assert (few["share_stored"], all_["share_stored"]) == (0, 1)
    assert few["UV_bytes"] == pytest.approx(few["mean_rank"] * 100 * (27 + 1024) * 2)
    assert all_["UV_bytes"] == all_["input_bytes"]
    assert all_["cut_input"] == 0


def test_a_method_without_ranks_is_listed_with_a_dash_and_the_bytes_that_it_holds(capsys):
    images = photos().train_images[:100]
    (row,) = measure_sizes(images, ["quant8"], [0.1]).to_dict("records")
    assert pd.isna(row["mean_rank"])
    assert row["UV_bytes"] == row["held_bytes"] == 100 * (3072 + 12 * 4 + 3)
    assert sizes.main(["--compressors", "quant8", "rproj"]) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.startswith("| quant8 | – | – |")]) == 1
    assert "the paper" not in out, "its number is of CIFAR-10's images"


def test_the_command_writes_the_table_with_its_source_and_itself(tmp_path, capsys):
    records = tmp_path / "cifar-10-mine" / "cifar-10-batches-bin" / "data_batch_1.bin"
    records.parent.mkdir(parents=True)
    pixels = photos().train_images[:100].flatten(1)
    records.write_bytes(torch.cat([torch.zeros(100, 1, dtype=torch.uint8), pixels], 1).numpy().tobytes())
    out = tmp_path / "out"
    arguments = ["--records", str(records), "--compressors", "svd", "--eps", "0.1", "--out", str(out)]
    assert sizes.main(arguments) == 0
    text = (out / "sizes.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "data_batch_1.bin of the folder cifar-10-mine" in text
    assert "python -m lrbench.sizes --records" in text
    assert "2,592,556" in text
    assert "Cut vs saved: nothing to save." in text
    assert len(pd.read_csv(out / "sizes.csv")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compressors", "svf"], "svd"),
        (["--eps", "2"], "(0, 1]"),
        (["--records", "/nonexistent.bin"], "/nonexistent.bin"),
        (["--data-dir", "somewhere"], "--data-dir is of CIFAR-10: give it with --dataset cifar10"),
        (["--data-dir", "somewhere", "--dataset", "photos"], "--data-dir is of CIFAR-10"),
    ],
)
def test_a_bad_request_gets_one_sentence(arguments, message, capsys):
    assert sizes.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


@pytest.fixture(scope="module")
def lossless():
    folder = Path(os.environ.get("LRBENCH_DATA") or ".")
    for path in (folder / "data_batch_1.bin", folder / "cifar-10-batches-bin" / "data_batch_1.bin"):
        if path.exists() and path.stat().st_size == 4000 * 3073:
            return read_records(path, 4000)[0]
    pytest.skip("LRBENCH_DATA names no folder with the 4,000 lossless CIFAR-10 images")


def test_the_papers_table_is_reproduced_and_the_certified_keep_what_they_promise(lossless):
    table = measure_sizes(lossless, [*CERTIFIED, "aca-estimate"], [0.3, 0.1, 0.03, 0.01]).set_index(
        ["compressor", "eps"]
    )
    assert (table.loc[CERTIFIED, "violations"] == 0).all()
    paper = table.loc[("aca-estimate", 0.1)]
    assert paper["UV_bytes"] == pytest.approx(2_592_556, rel=0.02)
    assert round(paper["cut_im2col"], 2) == 0.77
    for name, least in (("svd", 0.79), ("rsvd", 0.78), ("aca", 0.50)):
        assert table.loc[(name, 0.1), "cut_im2col"] >= least

"""Every parser of ours is given what it should refuse: it returns, or raises what its documentation names, no more."""

import contextlib
import copy
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch
from zlib import crc32

import torch
from findings import Findings
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from report_records import make_policy_record, make_record, write_folder
from runs import config, photos

import lrbench
import lrbench.ablate as ablate
import lrbench.datasets as datasets
from lrbench import training
from lrbench.conv import masked_layers
from lrbench.datasets import RECORD_BYTES, DatasetError, read_records
from lrbench.files import DamagedFileError, read_sealed, write_sealed
from lrbench.joining import JoinError, join_folders
from lrbench.models import build_model
from lrbench.policy import Policy
from lrbench.report import write_report
from lrbench.report.figures import NAMES, Picture
from lrbench.store import checksum, read_folder, run_id, run_path

Parse = Callable[[object], object]

text = st.text(max_size=20)
scalar = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text)
tree = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8
)
bits = st.text("01", max_size=8)
patterns = st.text("conv123456*?[]!-.", max_size=8)
names = st.sampled_from([*lrbench.list_compressors(), "", "SVD", "svd ", "*"]) | text
options = st.sampled_from(["eps", "factors", "seed", "power", "sketch", "bits", "ratio", "q"]) | text
values = st.one_of(
    scalar, st.sampled_from([0, 1, -1, 0.0, 1.0, float("nan"), float("inf"), 10**400, "bfloat16", [], {}])
)

OPTIONS = "masks compressors eps path seeds widths epochs model train-size batch-size learning-rate device policies"
OPTIONS = [f"--{name}" for name in OPTIONS.split()]

POLICY = b"""lean = true
[layers.conv1]
compressor = "svd"
eps = 0.3
path = "both"
options = { factors = "bfloat16" }
["layers"."conv2"]
compressor = "aca"
"""


@st.composite
def mutated(draw: st.DrawFn, contents: list[bytes]) -> bytes:
    """A file with some bytes changed, cut out or put in."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        match draw(st.integers(0, 3)):
            case 0:
                content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del content[at:]
            case 2:
                del content[at : at + draw(st.integers(1, 40))]
            case _:
                content[at:at] = draw(st.binary(max_size=8) | st.sampled_from([b"[" * 3000, b'"', b"\n", b"9" * 5000]))
    return bytes(content)


@st.composite
def resealed(draw: st.DrawFn, records: list[dict]) -> tuple[str, bytes]:
    """A run's file in which a value is another one, with the checksum and the name of what it then says."""
    record = json.loads(json.dumps(draw(st.sampled_from(records))))
    place = record
    while True:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or draw(st.integers(0, 4)) == 0:
            break
        place = place[key]
    if isinstance(place, dict) and draw(st.integers(0, 4)) == 0:
        del place[key]
    else:
        place[key] = draw(tree | values | st.floats(0, 1))
    with contextlib.suppress(ValueError, KeyError, TypeError):
        record["id"] = run_id(record["config"])
        record["checksum"] = checksum(record)
    return str(record.get("id")), json.dumps(record).encode()


def compared() -> list[dict]:
    """Runs of a preset that are compared with one another, image by image."""
    made = [make_record(mask, seed=seed) for mask in ("000000", "101010") for seed in (0, 1)]
    for record in made:
        record["environment"]["preset"] = "paper"
        record["final"]["labels"] = record["final"]["exact"]["predictions"]
    return made


def try_parsers(count: int, start: int, base: Path) -> Findings:
    """Give the parsers about ``count`` inputs together."""
    found = Findings("Inputs given to a parser")
    with torch.device("meta"):
        model = build_model("paper", (4, 4, 4), 10)
    runs = base / "runs"
    runs.mkdir()
    records = [make_record("100000", "aca"), make_record("101010", eps=0.3), *compared()]
    records.append(make_policy_record("tuned", {"features.0": {"compressor": "svd", "eps": 0.1, "path": "both"}}))
    files = [json.dumps(record | {"checksum": checksum(record)}, indent=1).encode() for record in records]
    others, joined = write_folder(base / "others", records), base / "joined"
    small, checkpoint = config(train_size=20, test_size=20, epochs=1), base / "run.pt"
    training.train(small, photos(), checkpoint)
    saved = bytes(read_sealed(checkpoint))
    data = photos()
    datasets.load_dataset, loading = (lambda *_: data), datasets.load_dataset

    def mask(given_: object) -> None:
        masked_layers(model, given_)

    def spec(given_: object) -> None:
        name, chosen = given_
        lrbench.get_compressor(name, **chosen)

    def policy(given_: object) -> None:
        file = base / "policy.toml"
        file.write_bytes(given_)
        read = Policy.load(file)
        lrbench.wrap(copy.deepcopy(model), read)

    def run_file(given_: object) -> None:
        name, content = given_
        file = runs / f"{name}.json"
        file.write_bytes(content)
        try:
            contents = read_folder(base)
            assert len(contents.records) + len(contents.left_out) == 1, "the file is neither read nor left out"
            # Joining and reporting take a hundred times as long as reading: every eighth has to do.
            if contents.records and crc32(content) % 8 == 0:
                found.count("runs that were read, joined and reported")
                join(name)
                report(name, content)
        finally:
            file.unlink()

    def join(name: str) -> None:
        with contextlib.suppress(JoinError):
            join_folders([others, base], joined)
        if not run_path(others, name).exists():
            run_path(joined, name).unlink(missing_ok=True)

    def report(name: str, content: bytes) -> None:
        file = run_path(others, name)
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(content)
        try:
            write_report(others)
        finally:
            file.unlink() if before is None else file.write_bytes(before)

    def sealed(given_: object) -> None:
        file = base / "sealed"
        file.write_bytes(given_)
        read_sealed(file)

    def checkpoint_file(given_: object) -> None:
        write_sealed(checkpoint, given_)
        trained, optimizer = training._begin(small, 10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            training._load_checkpoint(checkpoint, small, trained, optimizer)
        for aside in base.glob("run.pt.*"):
            aside.unlink()

    def data_file(given_: object) -> None:
        file = base / "data_batch_1.bin"
        file.write_bytes(given_)
        read_records(file)

    def command(given_: object) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = ablate.main(["--dataset", "photos", "--out", str(base / "none"), "--dry-run", *given_])
            except SystemExit as stop:
                status = stop.code
        assert status in (0, 2), f"exit status {status}"
        assert status == 0 or err.getvalue().strip(), "refused without a word"

    allowed = (ValueError, LookupError, TypeError)
    option = st.sampled_from(OPTIONS)
    known = st.sampled_from(["svd", "aca", "both", "cpu", "paper", "cuda:99"])
    words = st.one_of(text, bits, patterns, st.integers().map(str), st.floats().map(str), known)
    parsers: dict[str, tuple[float, Parse, st.SearchStrategy, tuple[type[Exception], ...]]] = {
        "masks": (0.2, mask, st.one_of(bits, patterns, st.lists(patterns | scalar, max_size=4)), (ValueError,)),
        "compressor specs": (0.2, spec, st.tuples(names, st.dictionaries(options, values, max_size=3)), allowed),
        "policy files": (0.2, policy, st.one_of(mutated([POLICY]), st.binary(max_size=60)), allowed),
        "run files, damaged": (0.2, run_file, mutated(files).map(lambda content: ("0" * 16, content)), ()),
        "run files, resealed": (0.05, run_file, resealed(records), ()),
        "checkpoints, damaged": (0.06, sealed, mutated([checkpoint.read_bytes()]) | st.binary(), (DamagedFileError,)),
        "checkpoints, resealed": (0.02, checkpoint_file, mutated([saved]) | st.binary(), ()),
        "data files": (0.06, data_file, mutated([bytes(RECORD_BYTES), bytes(RECORD_BYTES * 2)]), (DatasetError,)),
        "command lines": (0.01, command, st.lists(st.tuples(option, words), max_size=3).map(
            lambda pairs: [word for pair in pairs for word in pair]), ()),
    }  # fmt: skip
    none = {name: Picture(name, name, "", None, "not drawn here") for name in NAMES}
    try:
        # Drawing and waiting for the disk would take most of the time.
        with patch("lrbench.report.figures.draw_figures", lambda *_: none), patch("os.fsync"):
            for kind, (share, parse, inputs, documented) in parsers.items():
                _fuzz(kind, parse, inputs, documented, max(1, round(share * count)), start, found)
    finally:
        datasets.load_dataset = loading
    return found


def _fuzz(
    kind: str,
    parse: Parse,
    inputs: st.SearchStrategy,
    documented: tuple[type[Exception], ...],
    count: int,
    start: int,
    found: Findings,
) -> None:
    """Give a parser so many inputs; hypothesis shrinks the first that makes it raise anything else."""

    @seed(start)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck),
              phases=[Phase.generate, Phase.shrink])  # fmt: skip
    @given(inputs)
    def attempt(given_: object) -> None:
        found.count(kind)
        nonlocal last
        last = given_
        with contextlib.suppress(*documented):
            parse(given_)

    last: object = None
    try:
        attempt()
    except Exception as error:
        found.expect(False, f"{kind}: {type(error).__name__}: {error} for {str(last)[:300]!r}")

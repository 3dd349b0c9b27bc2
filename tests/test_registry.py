"""Compressors are found by name, in this package and in others'."""

import sys
from pathlib import Path

import pytest

import lrbench
import lrbench.compressors
from lrbench import Compressor, UnknownCompressorError
from lrbench.blocks import Blocks
from lrbench.compressors import compressor_class

GUARANTEES = {
    "aca": "block",
    "aca-estimate": None,
    "aca-full": "block",
    "aca-svd": "block",
    "bf16": None,
    "cpqr": "block",
    "dct": None,
    "gram": "block",
    "hosvd": "batch",
    "id": "block",
    "input": "block",
    "none": "block",
    "pool": None,
    "qr-svd": "block",
    "quant2": None,
    "quant4": None,
    "quant8": None,
    "randqb": "block",
    "rproj": None,
    "rsvd": "block",
    "shared": "block",
    "svd": "block",
    "svd-rank": None,
    "svd-same-error": None,
    "svd-same-rank": None,
    "topk": "block",
    "warm": "block",
}
NAMES = list(GUARANTEES)
ON_INPUT = {"bf16", "dct", "hosvd", "input", "pool", "quant2", "quant4", "quant8", "topk"}
TRAITS = {
    "uses_eps": set(NAMES)
    - {"bf16", "dct", "input", "none", "pool", "quant2", "quant4", "quant8", "rproj", "svd-rank"},
    "pooled": {"hosvd", "shared", "warm"},
    "stateful": {"rproj", "warm"},
    "randomized": {"quant2", "quant4", "quant8", "randqb", "rproj", "rsvd"},
    "low_rank": set(NAMES) - ON_INPUT,
    "on_input": ON_INPUT,
}


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the registry, thrown away after the test."""
    lrbench.list_compressors()
    monkeypatch.setattr(lrbench.compressors, "_classes", dict(lrbench.compressors._classes))


def mine(qualname: str = "Mine") -> type[Compressor]:
    class Mine(Compressor):
        def factorize(self, blocks: Blocks) -> lrbench.LowRank:
            raise NotImplementedError

    Mine.__qualname__ = qualname
    return Mine


def test_every_method_is_there() -> None:
    assert lrbench.list_compressors() == NAMES
    assert {name: compressor_class(name).guarantee for name in NAMES} == GUARANTEES
    assert all(compressor_class(name).name == name for name in NAMES)


@pytest.mark.parametrize("trait", TRAITS)
def test_every_method_says_what_it_is_like(trait: str) -> None:
    assert {name for name in NAMES if getattr(compressor_class(name), trait)} == TRAITS[trait]


@pytest.mark.parametrize("name", sorted(TRAITS["randomized"]))
def test_what_is_random_takes_a_seed(name: str) -> None:
    assert lrbench.get_compressor(name, seed=3).seed == 3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="seed is -1"):
        lrbench.get_compressor(name, seed=-1)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", NAMES),
        ("*aca*", ["aca", "aca-estimate", "aca-full", "aca-svd"]),
        ("aca", ["aca"]),
        ("*svd", ["aca-svd", "hosvd", "qr-svd", "rsvd", "svd"]),
        ("?svd", ["rsvd"]),
        ("[rs]*", ["randqb", "rproj", "rsvd", "shared", "svd", "svd-rank", "svd-same-error", "svd-same-rank"]),
        ("ACA", []),
        ("", []),
    ],
)
def test_names_are_listed_by_wildcards(pattern: str, names: list[str]) -> None:
    assert lrbench.list_compressors(pattern) == names


def test_a_compressor_is_made_with_its_options() -> None:
    made = lrbench.get_compressor("rsvd", eps=0.25, sketch=7, seed=3)
    assert (made.eps, made.sketch, made.seed, made.name) == (0.25, 7, 3, "rsvd")  # type: ignore[attr-defined]
    assert lrbench.get_compressor("svd").eps == 0.1


@pytest.mark.parametrize(
    ("wrong", "right"), [("svdd", "svd"), ("acca", "aca"), ("aca_estimate", "aca-estimate"), ("SVD", None), ("", None)]
)
def test_an_unknown_name_is_answered_with_near_ones(wrong: str, right: str | None) -> None:
    with pytest.raises(UnknownCompressorError, match=f"there is no compressor {wrong!r}") as caught:
        lrbench.get_compressor(wrong)
    assert "\n" not in str(caught.value)
    if right is None:
        assert all(name in str(caught.value) for name in NAMES) or "did you mean" in str(caught.value)
    else:
        assert f"did you mean {right}" in str(caught.value)


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match="'svd' does not take rank, tol: it takes eps"):
        lrbench.get_compressor("svd", tol=0.1, rank=3)
    with pytest.raises(TypeError, match="it takes eps, sketch, oversampling, seed"):
        lrbench.get_compressor("rsvd", iterations=3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("eps", [0, -1, 1.5, float("nan"), float("inf"), "x", True, None, [0.1]], ids=repr)
def test_a_tolerance_out_of_range_is_refused(name: str, eps: object) -> None:
    with pytest.raises(ValueError, match=r"eps is .*: it must be a number in \(0, 1\]") as caught:
        lrbench.get_compressor(name, eps=eps)
    assert repr(eps) in str(caught.value)


@pytest.mark.parametrize("eps", [1, 1.0, 1e-300, 5e-324])
def test_a_tolerance_in_range_is_taken(eps: float) -> None:
    assert lrbench.get_compressor("svd", eps=eps).eps == eps


def test_a_class_is_registered_and_made() -> None:
    cls = lrbench.register("mine")(mine())
    assert cls.name == "mine"
    assert lrbench.list_compressors("m*") == ["mine"]
    assert type(lrbench.get_compressor("mine", eps=0.5)) is cls


def test_a_name_belongs_to_one_class() -> None:
    with pytest.raises(ValueError, match=r"'svd' belongs to lrbench\.compressors\.svd\.TruncatedSVD"):
        lrbench.register("svd")(mine())
    assert compressor_class("svd").__name__ == "TruncatedSVD"
    lrbench.register("mine")(mine())
    with pytest.raises(ValueError, match="'mine' belongs to"):
        lrbench.register("mine")(mine("Other"))


def test_the_same_class_may_be_defined_again() -> None:
    """As a notebook's cell or a reloaded module does."""
    lrbench.register("mine")(mine())
    again = lrbench.register("mine")(mine())
    assert compressor_class("mine") is again


@pytest.mark.parametrize("thing", [object, int, "svd", len, None], ids=str)
def test_only_compressors_are_registered(thing: object) -> None:
    with pytest.raises(TypeError, match=r"derive it from lrbench\.Compressor"):
        lrbench.register("mine")(thing)  # type: ignore[type-var]
    assert "mine" not in lrbench.list_compressors()


def install_plugin(folder: Path, code: str, entries: str) -> None:
    """Lay out a distribution with entry points, as pip would."""
    (folder / "lrbench_plugin.py").write_text(code)
    info = folder / "lrbench_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lrbench-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lrbench.compressors]\n{entries}\n")


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """An empty folder on the path, looked through at the next call; nothing of it stays."""
    monkeypatch.syspath_prepend(str(tmp_path))
    lrbench.compressors._load.cache_clear()
    yield tmp_path
    sys.modules.pop("lrbench_plugin", None)
    monkeypatch.undo()
    lrbench.compressors._load.cache_clear()
    lrbench.list_compressors()


PLUGIN = """
import lrbench

{decorator}
class Theirs(lrbench.Compressor):
    def factorize(self, blocks):
        return lrbench.get_compressor("svd", eps=self.eps).factorize(blocks)
"""


@pytest.mark.parametrize("decorator", ["", '@lrbench.register("theirs")'], ids=["plain", "decorated"])
def test_a_plugin_is_found_by_its_entry_point(plugins: Path, decorator: str) -> None:
    install_plugin(plugins, PLUGIN.format(decorator=decorator), "theirs = lrbench_plugin:Theirs")
    assert lrbench.list_compressors() == sorted([*NAMES, "theirs"])
    compressor = lrbench.get_compressor("theirs", eps=0.2)
    assert compressor.name == "theirs"
    assert type(compressor).__module__ == "lrbench_plugin"


def test_a_plugin_cannot_take_a_name_that_is_taken(plugins: Path) -> None:
    install_plugin(plugins, PLUGIN.format(decorator=""), "svd = lrbench_plugin:Theirs")
    with pytest.raises(ValueError, match="'svd' belongs to"):
        lrbench.list_compressors()


def test_a_plugin_that_cannot_be_loaded_is_named_and_the_others_are_there(plugins: Path) -> None:
    install_plugin(plugins, "import no_such_module\n", "theirs = lrbench_plugin:Theirs")
    with pytest.warns(UserWarning, match="'theirs'.*no_such_module"):
        assert lrbench.list_compressors() == NAMES


def test_a_promise_that_nobody_knows_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'blocks'.*'block'"):

        @lrbench.register("promising")
        class Promising(lrbench.Compressor):
            guarantee = "blocks"  # type: ignore[assignment]

            def factorize(self, blocks):  # type: ignore[no-untyped-def]
                raise NotImplementedError

    assert lrbench.list_compressors() == NAMES


def test_a_plugin_that_is_no_compressor_is_named(plugins: Path) -> None:
    install_plugin(plugins, "Theirs = 3\n", "theirs = lrbench_plugin:Theirs")
    with pytest.raises(TypeError, match="'theirs'"):
        lrbench.list_compressors()


def test_no_plugin_stays_behind() -> None:
    assert lrbench.list_compressors() == NAMES
    assert "lrbench_plugin" not in sys.modules

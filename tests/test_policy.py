"""A policy says for each layer what is done to it, survives TOML, and is checked before a model is touched."""

import copy
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lrbench
from lrbench import LayerPolicy, Policy
from lrbench.checkpointing import checkpointed, segments_of
from lrbench.conv import plain_copy
from lrbench.models import paper_cnn

TEXT = """
lean = true

[layers.conv2]
compressor = "svd"
eps = 0.3

[layers.conv4]
compressor = "rsvd"
eps = 0.1
path = "both"
options = { sketch = 4, seed = 3 }
"""


def network() -> nn.Sequential:
    return paper_cnn((4, 4, 8), image_size=16)


def test_each_layer_gets_what_the_policy_says_of_it() -> None:
    model = lrbench.wrap(network(), Policy.from_toml(TEXT))
    layers = lrbench.compressed_layers(model)
    assert list(layers) == ["conv2", "conv4"]
    assert (layers["conv2"].compressor.name, layers["conv2"].compressor.eps, layers["conv2"].path) == (
        "svd",
        0.3,
        "backward",
    )
    rsvd = layers["conv4"].compressor
    assert (rsvd.name, rsvd.eps, rsvd.sketch, rsvd.seed, layers["conv4"].path) == ("rsvd", 0.1, 4, 3, "both")
    assert lrbench.lean_modules(model)
    model(torch.rand(2, 3, 16, 16)).sum().backward()
    assert not lrbench.compressed_layers(lrbench.unlean(lrbench.unwrap(model)))
    assert not lrbench.lean_modules(model)


def test_a_policy_cuts_a_model_into_segments_and_its_gradients_stay_as_they_are() -> None:
    plain = network()
    model = lrbench.wrap(copy.deepcopy(plain), Policy({}, lean=True, segments=4))
    assert segments_of(model) == 4
    x = torch.rand(2, 3, 16, 16)
    for each in (plain, model):
        torch.manual_seed(0)
        each(x).square().sum().backward()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    again = plain_copy(model)
    assert not segments_of(again)
    assert not lrbench.lean_modules(again)
    assert segments_of(model) == 4


_text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)
_values = st.one_of(
    st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False), _text
)
_layers = st.builds(
    LayerPolicy,
    compressor=_text,
    eps=st.one_of(st.none(), st.floats(1e-9, 1)),
    path=_text,
    options=st.dictionaries(_text, _values, max_size=3),
)


@given(
    st.builds(
        Policy,
        layers=st.dictionaries(_text, _layers, max_size=3),
        lean=st.booleans(),
        segments=st.integers(0, 2**62),
    )
)
def test_a_policy_survives_toml(policy: Policy) -> None:
    assert Policy.from_toml(policy.to_toml()) == policy


@given(st.one_of(st.text(), _text.map(lambda t: f"[layers.a]\ncompressor = {t}"), st.sampled_from(TEXT.split("\n"))))
def test_any_text_is_a_policy_or_a_clear_error(text: str) -> None:
    with suppress(ValueError):  # what the command line prints; anything else would be a traceback
        assert isinstance(Policy.from_toml(text), Policy)


def test_the_identity_holds_the_versions_and_gives_the_policy_back() -> None:
    policy = Policy.from_toml(TEXT)
    assert Policy.from_identity(policy.identity()) == policy
    assert "segments" not in policy.identity()  # runs of before there were any keep their names
    cut = replace(policy, segments=3)
    assert Policy.from_identity(cut.identity()) == cut
    version = lrbench.get_compressor("svd").version
    assert (
        f'"compressor": "svd", "eps": 0.3, "options": {{}}, "path": "backward", "version": {version}'
        in policy.identity()
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lean = 3", "lean is 3"),
        ("segments = -1", "segments is -1"),
        ("segments = true", "segments is True"),
        ("mask = '1'", "the policy has mask"),
        ("layers = 3", "must be tables"),
        ("[layers.conv1]\neps = 0.1", "names no compressor"),
        ("[layers.conv1]\ncompressor = 'svd'\nrank = 3", "has rank"),
        ("[layers.conv1]\ncompressor = 3", "give a str"),
        ("[layers.conv1]\ncompressor = 'svd'\neps = true", "eps is True"),
        ("[layers.conv1]\ncompressor = 'svd'\noptions = { a = [1] }", "a table or a list"),
        ("[layers", "no TOML"),
        ("lean = " + "[" * 10_000, "no TOML"),
    ],
)
def test_what_is_no_policy_is_refused_with_its_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy.from_toml(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"none\.toml cannot be read"):
        Policy.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("lean = 3")
    with pytest.raises(ValueError, match=r"bad\.toml: lean is 3"):
        Policy.load(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Policy({"conv9": LayerPolicy("svd")}, lean=True), "the policy names conv9"),
        (Policy({"conv1": LayerPolicy("svd", path="sideways")}, lean=True), "path is 'sideways'"),
        (Policy({"conv1": LayerPolicy("svd", eps=2.0)}, lean=True), r"eps is 2\.0"),
        (Policy({"conv1": LayerPolicy("svg")}, lean=True), "did you mean"),
        (Policy({"conv1": LayerPolicy("svd")}, lean=True, segments=99), "cut into 2 to"),
    ],
)
def test_a_policy_that_does_not_fit_leaves_the_model_as_it_was(policy: Policy, message: str) -> None:
    model = network()
    with pytest.raises((ValueError, LookupError), match=message):
        lrbench.wrap(model, policy)
    assert not lrbench.compressed_layers(model)
    assert not lrbench.lean_modules(model)
    assert not segments_of(model)


def test_a_policy_that_cannot_be_applied_leaves_what_the_model_was_before() -> None:
    lean = lrbench.lean(network())
    with pytest.raises(ValueError, match="cut into 2 to"):
        lrbench.wrap(lean, Policy({}, segments=99))
    assert lrbench.lean_modules(lean)
    with pytest.raises(ValueError, match="lean already"):
        lrbench.wrap(lean, Policy({}, lean=True, segments=2))
    assert lrbench.lean_modules(lean)
    assert not segments_of(lean)


def test_a_policy_that_cannot_be_applied_leaves_parts_that_were_cut_before() -> None:
    part = checkpointed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 2)
    model = lrbench.lean(nn.Sequential(part, nn.Flatten()))
    with pytest.raises(ValueError, match="lean already"):
        lrbench.wrap(model, Policy({}, lean=True, segments=2))
    assert (segments_of(part), segments_of(model)) == (2, 0)
    assert lrbench.lean_modules(model)


def test_a_policy_beside_other_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match="beside a policy"):
        lrbench.wrap(network(), Policy({}), eps=0.1)

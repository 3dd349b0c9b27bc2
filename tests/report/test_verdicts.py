"""Verdicts say what the records hold, name their denominators, and do not flatter."""

from typing import Any

import pytest
from report_records import layer, make_failure, make_policy_record, make_record, older, savings, spread

from lrbench.report.summaries import compare_accuracy, paired_interval
from lrbench.report.tables import make_studies
from lrbench.report.verdicts import Verdict, headlines, judge
from lrbench.store import Record


def verdict(topic: str, *records: Record, subject: str = "svd") -> Verdict:
    """Return the one verdict on a subject."""
    (study,) = make_studies(records)
    (found,) = [v for v in judge(study) if v.topic == topic and v.subject == subject]
    return found


def accuracy(differences: list[float], plain: float = 0.5, **changes: Any) -> Verdict:
    """Judge a cell whose seeds differ from the plain model by so many points."""
    records = []
    for seed, points in enumerate(differences):
        records += [make_record("000000", seed=seed, accuracy=plain)]
        records += [make_record("100000", "svd", seed, plain + points / 100, **changes)]
    return verdict("Accuracy", *records)


def test_a_kept_tolerance_is_counted() -> None:
    found = verdict("Tolerance", make_record())
    assert found.outcome == "kept eps"
    assert "kept eps 0.1 on all 50 blocks" in found.text
    assert "Certified for every block." in found.text


def test_violations_are_counted_with_the_worst_error() -> None:
    measured = layer(0, "aca-estimate", 0.1, violations=40, error_max=0.66)
    found = verdict("Tolerance", make_record(compressor="aca-estimate", layers=[measured]), subject="aca-estimate")
    assert found.outcome == "broke eps, not certified"
    assert "40 of 50 blocks (80 %); worst error 0.66, 6.6 times what was asked. Not certified." in found.text


def test_no_violation_without_a_guarantee_is_not_a_certificate() -> None:
    found = verdict("Tolerance", make_record(layers=[layer(0, "svd", 0.1, guarantee=None)]))
    assert found.outcome == "kept eps here, but not certified"
    assert found.tone == "open"


def test_a_promise_for_the_batch_is_not_broken_by_a_block() -> None:
    measured = layer(0, "hosvd", 0.1, guarantee="batch", violations=40, error_max=0.66)
    found = verdict("Tolerance", make_record(compressor="hosvd", layers=[measured]), subject="hosvd")
    assert found.outcome == "some blocks above eps, which is promised for the batch alone"
    assert found.tone == "open"
    assert found.text.startswith(
        "hosvd is above eps 0.1 on 40 of 50 blocks (80 %); worst error 0.66, 6.6 times what was"
    )


def test_a_certified_compressor_that_breaks_eps_is_a_defect() -> None:
    found = verdict("Tolerance", make_record(layers=[layer(0, "svd", 0.1, violations=1, error_max=0.10000001)]))
    assert "a defect" in found.outcome
    assert "worst error 0.10000001" in found.text, "it must not read as 0.1"


def test_escalated_and_stored_shares_are_told() -> None:
    found = verdict("Tolerance", make_record(layers=[layer(0, "svd", 0.1, share_own=0.7, share_escalated=0.3)]))
    assert "30.0 % of its blocks were escalated to the SVD." in found.text


@pytest.mark.parametrize(
    ("cut_im2col", "cut_input", "outcome", "words"),
    [
        (0.8, -0.8, "no benefit: smaller than im2col", "cut 0.80 vs im2col, cut −0.80 vs the input (1.80 times its"),
        (0.8, -0.8, "no benefit: smaller than im2col", "times its bytes, larger than the input)"),
        (0.9, 0.1, "smaller than the input", "cut 0.90 vs im2col, cut 0.10 vs the input,"),
        (-0.1, -8.9, "no benefit: smaller than neither", "no benefit, neither over what PyTorch keeps nor over im2col"),
        (0.9, 0.0, "no benefit: smaller than im2col", "cut 0.00 vs the input,"),
    ],
)  # fmt: skip
def test_cuts_name_their_denominators(cut_im2col: float, cut_input: float, outcome: str, words: str) -> None:
    measured = layer(0, "svd", 0.1, cut_im2col=cut_im2col, cut_input=cut_input)
    found = verdict("Size", make_record(layers=[measured]))
    assert found.outcome.startswith(outcome)
    assert words in found.text


def test_one_seed_gives_no_interval() -> None:
    found = accuracy([-3.2])
    assert found.outcome == "one seed gives no interval"
    assert "−3.2 points against 000000 (seed 0: −3.2). One seed gives no interval." in found.text
    assert "500 test images alone give its accuracy a binomial standard error of 2.2 points" in found.text


def test_an_interval_within_a_point_costs_nothing() -> None:
    found = accuracy([0.1, -0.1])
    assert found.outcome == "costs nothing"
    assert "paired t 90 % interval −0.63 to +0.63, 2 seeds (seed 0: +0.1, seed 1: −0.1): costs nothing." in found.text


def test_a_wide_interval_cannot_be_told() -> None:
    found = accuracy([0.4, -0.4, 1.9])
    assert found.outcome == "cannot be told from these 3 seeds"
    assert found.tone == "open"


def test_an_interval_below_zero_costs_accuracy() -> None:
    assert accuracy([-6.7, -6.5]).outcome == "costs accuracy"
    assert accuracy([-0.4, -0.5, -0.45]).outcome == "differs by less than a point"
    assert accuracy([6.7, 6.5]).outcome == "gains accuracy"


def test_many_intervals_are_said_to_be_each_for_itself() -> None:
    plain = [make_record("000000", seed=seed) for seed in (0, 1)]
    masks = [f"{bits:06b}" for bits in range(1, 20)]
    cells = [make_record(mask, "svd", seed, 0.5 + 0.02 * seed) for mask in masks for seed in (0, 1)]
    found = verdict("Accuracy", *plain, *cells, subject="19 intervals")
    assert "Each of these 19 intervals is for itself" in found.text
    assert "about 1.9 of them would leave out zero" in found.text
    (study,) = make_studies([*plain, *cells[:18]])
    assert not any("for itself" in few.outcome for few in judge(study))


def test_equal_differences_are_not_taken_for_certainty() -> None:
    assert "so few seeds cannot warrant an interval of no width" in accuracy([-0.5, -0.5], 0.25).text
    rounded = [make_record("000000", seed=seed, accuracy=0.5 + 0.02 * seed) for seed in (0, 1)]
    rounded += [make_record("100000", "svd", seed, 0.4 + 0.02 * seed) for seed in (0, 1)]
    assert "so few seeds cannot warrant an interval of no width" in verdict("Accuracy", *rounded).text


def test_a_diverged_seed_is_named_and_outweighs_the_others() -> None:
    good = [make_record("000000", seed=s) for s in (0, 1)] + [make_record("100000", "svd", 0)]
    lost = make_record("100000", "svd", 1, outcome="diverged", final=None)
    found = verdict("Accuracy", *good, lost)
    assert found.outcome == "diverged on some seeds"
    assert "Diverged: seed 1." in found.text


def test_chance_level_is_named() -> None:
    found = accuracy([-40.0, -40.0], outcome="chance")
    assert found.outcome == "at chance level"
    assert "At chance level: seeds 0 and 1." in found.text


def test_a_plain_model_at_chance_proves_nothing() -> None:
    records = [
        make_record("000000", accuracy=0.1, outcome="chance"),
        make_record("100000", "svd", 0, 0.1, outcome="chance"),
    ]
    assert "the plain model did not learn" in verdict("Accuracy", *records).outcome
    assert verdict("Accuracy", *records, subject="000000").outcome == "the plain model itself did not learn"


def test_only_equal_seeds_are_paired() -> None:
    records = [make_record("000000", seed=0), *(make_record("100000", "svd", seed, 0.5) for seed in (0, 1))]
    found = verdict("Accuracy", *records)
    assert found.outcome == "one seed gives no interval"
    assert "No plain run to pair with: seed 1." in found.text


def test_a_seed_that_is_missing_does_not_shift_the_pairs() -> None:
    plain = [make_record("000000", seed=seed, accuracy=0.4 + seed / 10) for seed in (0, 1, 2)]
    records = [*plain, *(make_record("100000", "svd", seed, 0.4 + seed / 10) for seed in (1, 2))]
    (study,) = make_studies(records)
    (found,) = compare_accuracy(study)
    assert found.differences == pytest.approx({1: 0.0, 2: 0.0})


def test_settings_are_not_paired_with_each_other() -> None:
    other = make_record("100000", "svd", config={"epochs": 9})
    for study in make_studies([make_record("000000"), other]):
        assert not any("points against" in v.text for v in judge(study))


@pytest.mark.parametrize(
    ("ratio", "outcome"),
    [
        (spread(2.31, 0.05), "no faster"),
        (spread(1.0, 0.1), "no faster"),
        (spread(0.97, 0.1), "no difference that these rounds can tell"),
        (spread(0.8, 0.05), "faster"),
    ],
)
def test_time_is_judged_by_the_ratio_and_its_quartiles(ratio: dict[str, float], outcome: str) -> None:
    record = make_record()
    record["step"]["ratio"] = ratio
    found = verdict("Step time", record)
    assert found.outcome == outcome
    assert f"{ratio['median']:.2f} times the plain model's (quartiles" in found.text


@pytest.mark.parametrize(
    ("peak", "outcome"),
    [
        (5.3e8, "no benefit"),
        (5.0e8, "no benefit"),
        (4.95e8, "no difference that these processes can tell"),
        (4e8, "lower peak"),
    ],
)
def test_peak_memory_is_judged_beside_the_plain_model(peak: float, outcome: str) -> None:
    record = make_record()
    record["peak"]["wrapped_bytes"] = {"median": peak, "min": peak - 1e6, "max": peak + 1e6}
    assert verdict("Peak memory", record).outcome == outcome


def test_a_ratio_never_looks_equal_to_one_where_a_difference_is_claimed() -> None:
    record = make_record()
    record["peak"]["plain_bytes"] = {"median": 5e8, "min": 5e8, "max": 5e8}
    record["peak"]["wrapped_bytes"] = {"median": 4.98e8, "min": 4.98e8, "max": 4.98e8}
    found = verdict("Peak memory", record)
    assert (found.outcome, found.key) == ("lower peak", "0.996×")


def test_a_failed_run_is_named_with_its_reason() -> None:
    found = verdict("Failed runs", make_record("000000"), make_failure("out of memory.", seed=3))
    assert found.text == "svd, mask 100000, seed 3: out of memory."


def test_what_was_not_measured_is_said_with_the_reason() -> None:
    record = make_record(
        step=None, step_reason="not measured: another process was running", peak=None, peak_reason=None
    )
    (study,) = make_studies([record])
    texts = [v.text for v in judge(study) if v.topic == "Not measured"]
    assert texts == [
        "Step time: not measured in 1 of 1 masked run: another process was running.",
        "Peak memory: not measured in 1 of 1 masked run: no reason was recorded.",
    ]


def test_headlines_gather_subjects_by_outcome() -> None:
    (study,) = make_studies([make_record("100000"), make_record("101010")])
    (time,) = [line for line in headlines(judge(study)) if line.topic == "Step time"]
    assert time.outcome == "no faster"
    assert [subject.replace("\N{NO-BREAK SPACE}", " ") for subject in time.subjects] == [
        "svd (100000: 4.10×, 101010: 4.10×)"
    ]


def test_the_paired_interval_is_students() -> None:
    low, high = paired_interval([1.0, 3.0])
    assert low == pytest.approx(2 - 6.313752, abs=1e-5)
    assert high == pytest.approx(2 + 6.313752, abs=1e-5)
    assert paired_interval([1.0]) == (None, None)


def small(index: int) -> dict[str, Any]:
    """A layer whose factors are smaller than its input."""
    return layer(index, "svd", 0.1, factor_bytes=50_000, cut_input=0.9)


def test_a_cut_that_frees_nothing_is_no_saving_and_names_who_keeps_the_input() -> None:
    found = verdict("Size", make_record(layers=[small(0)]))
    assert (found.tone, found.outcome) == ("bad", "smaller than the input, but frees nothing")
    assert "nothing to save: smaller than the input, but frees nothing: the caller keeps it, too." in found.text


def test_a_cut_that_frees_memory_says_how_much() -> None:
    record = make_record("001000", layers=[small(2)])
    row = record["savings"]["layers"][0]
    found = verdict("Size", record)
    assert found.tone == "good"
    assert "vs what is saved: smaller than the input that PyTorch keeps" in found.text
    assert f"frees {10 * row['freed_bytes']:,} bytes" in found.text, "of the hundred images that bytes are scaled to"


def test_a_cut_of_an_older_run_is_not_called_a_saving() -> None:
    found = verdict("Size", older(make_record(layers=[small(0)])))
    assert found.tone == "open"
    assert "what that frees was not measured" in found.text
    (study,) = make_studies([older(make_record())])
    (gap,) = [v.text for v in judge(study) if v.topic == "Not measured"]
    assert gap == "What a step holds: not measured in 1 of 1 masked run: the run is older than this measurement."


def held(*records: Record) -> dict[str, Verdict]:
    """Return the verdicts on what a step holds, by outcome."""
    (study,) = make_studies(records)
    return {v.outcome: v for v in judge(study) if v.topic == "Memory held"}


def test_what_a_step_holds_is_judged_beside_the_plain_model() -> None:
    (found,) = held(make_record("001000", layers=[small(2)])).values()
    assert (found.tone, found.outcome) == ("good", "holds less than the plain model")
    more = held(make_record("001000", layers=[layer(2, "svd", 0.1, factor_bytes=10**8)]))
    assert more["holds no less than the plain model"].tone == "bad"


def test_less_freed_than_claimed_is_a_verdict_of_its_own_with_the_layers_reason() -> None:
    found = held(make_record(layers=[small(0)]))["frees less than the formula claims"]
    claimed, holds = 12288 * 10 - 10_000, 10_000
    assert f"by formula compression frees {claimed:,} bytes, for real it adds {holds:,} bytes" in found.text
    assert "features.0: its input is kept by the caller, too" in found.text


def test_memory_that_autograd_did_not_save_is_a_defect() -> None:
    record = make_record("001000", layers=[small(2)], savings=savings([small(2)], hidden_bytes=4096))
    found = held(record)["hides memory from autograd: a defect"]
    assert found.tone == "bad"
    assert "4,096 bytes are alive that autograd did not save" in found.text


def test_what_bits_free_is_told_apart_from_compression() -> None:
    step = savings([], held_bytes=4_000_000, uncompressed_bytes=4_000_000, lean_freed_bytes=6_000_000)
    (found,) = held(make_record("000000"), make_policy_record("bits", {}, lean=True, savings=step)).values()
    assert found.text.endswith(
        "0.40× the plain model's 10,000,000: keeping bits or computing again frees 6,000,000 bytes."
    )
    (study,) = make_studies([make_policy_record("bits", {}, lean=True, savings=step)])
    assert not [v for v in judge(study) if v.topic == "Not measured"], "it has no layers to measure"


def test_each_layer_of_a_policy_is_held_to_its_own_tolerance() -> None:
    said = {"features.4": {"compressor": "svd", "eps": 0.3, "path": "backward"}}
    said |= {"features.8": {"compressor": "aca", "eps": 0.1, "path": "both"}}
    record = make_policy_record("tuned", said)
    assert "kept eps 0.3 on all 50 blocks" in verdict("Tolerance", record, subject="tuned (svd, eps 0.3)").text
    assert "kept eps 0.1 on all 50 blocks" in verdict("Tolerance", record, subject="tuned (aca, eps 0.1)").text

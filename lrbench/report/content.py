"""The report's content, in order, before it becomes HTML or Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lrbench.report.contrasts import presets_of
from lrbench.report.figures import Picture
from lrbench.report.learning_listings import (
    list_accuracy,
    list_compared,
    list_contrasts,
    list_effects,
    list_gradients,
)
from lrbench.report.listings import (
    Listing,
    list_bytes,
    list_commands,
    list_held,
    list_origins,
    list_peaks,
    list_policies,
    list_runs,
    list_times,
)
from lrbench.report.prices import judge_prices, list_prices
from lrbench.report.tables import Study, is_plain
from lrbench.report.verdicts import PHOTOS, Headline, Verdict, headlines, judge
from lrbench.report.wording import count, join, plural
from lrbench.store import SCHEMA, Contents, Record, is_finished

__all__ = ["Chapter", "Report", "Section", "compose"]

_SECTIONS = (
    ("Comparisons", ("contrasts",), (list_contrasts, list_compared)),
    ("Effects", ("effects",), (list_effects,)),
    ("Does it pay", ("prices",), (list_prices,)),
    ("Accuracy", ("differences", "accuracy"), (list_accuracy,)),
    ("Tolerance", ("error",), ()),
    ("Gradients", ("chain",), (list_gradients,)),
    ("Size", ("bytes", "ranks", "cuts"), (list_bytes,)),
    ("Step time", ("time",), (list_times,)),
    ("Memory held", (), (list_held,)),
    ("Peak memory", ("memory",), (list_peaks,)),
    ("Policies", (), (list_policies,)),
    ("Failed runs", (), ()),
    ("Not measured", (), ()),
)


@dataclass(frozen=True)
class Section:
    """One topic: verdicts in words, figures drawn or missing, tables."""

    anchor: str
    title: str
    verdicts: tuple[Verdict, ...]
    pictures: tuple[Picture, ...]
    listings: tuple[Listing, ...]


@dataclass(frozen=True)
class Chapter:
    """What one setting gave; ``suffix`` is that of its figures' names."""

    setting: str
    suffix: str
    headlines: Mapping[str, Sequence[Headline]]
    sections: tuple[Section, ...]
    runs: Listing


@dataclass(frozen=True)
class Report:
    """Everything that a page says."""

    title: str
    subtitle: str
    notices: tuple[str, ...]
    chapters: tuple[Chapter, ...]
    origins: tuple[Listing, ...]
    commands: Mapping[str, str]


def compose(studies: Sequence[Study], pictures: Sequence[Mapping[str, Picture]], contents: Contents) -> Report:
    """Put a report together.

    Parameters
    ----------
    studies
        One per setting.
    pictures
        The figures of each.
    contents
        Of the folder, for the files that hold no run to report.
    """
    records = [record for study in studies for record in study.records]
    chapters = [
        _chapter(study, drawn, suffix_of(place, len(studies)))
        for place, (study, drawn) in enumerate(zip(studies, pictures, strict=True))
    ]
    return Report(
        title=f"What compression gave, and what it cost, on {join(_values(records, 'dataset'))}",
        subtitle=_subtitle(records),
        notices=tuple(_notices(studies, records, contents)),
        chapters=tuple(chapters),
        origins=tuple(list_origins(records)),
        commands=list_commands(records),
    )


def suffix_of(place: int, studies: int) -> str:
    """Return what tells the figures of one of several settings apart."""
    return f"-{place + 1}" if studies > 1 else ""


def _chapter(study: Study, pictures: Mapping[str, Picture], suffix: str) -> Chapter:
    verdicts = [*judge(study), *judge_prices(study)]
    by_topic: dict[str, list[Headline]] = {title: [] for title, *_ in _SECTIONS}
    for headline in headlines(verdicts):
        by_topic[headline.topic].append(headline)
    sections = []
    for title, names, listings in _SECTIONS:
        own = tuple(verdict for verdict in verdicts if verdict.topic == title and verdict.text)
        shown = tuple(pictures[name] for name in names if pictures[name].reason != "")
        tables = tuple(listing for listing in (make(study) for make in listings) if listing.rows)
        if own or shown or tables:
            anchor = f"{title.lower().replace(' ', '-')}{suffix}"
            sections.append(Section(anchor, title, own, shown, tables))
    told = {topic: found for topic, found in by_topic.items() if found}
    return Chapter(study.setting, suffix, told, tuple(sections), list_runs(study))


def _subtitle(records: Sequence[Record]) -> str:
    failed = sum(not is_finished(record) for record in records)
    changed = [record for record in records if not is_plain(record["config"])]
    by_policy = [record for record in changed if record["config"].get("policy") is not None]
    by_compressor = [record for record in changed if record["config"].get("policy") is None]
    counts = (
        (len(_values(by_compressor, "compressor")), "compressor"),
        (len(_values(by_policy, "policy")), "policy file"),
        (len(_values(records, "mask")), "mask"),
        (len(_values(records, "seed")), "seed"),
    )
    words = [plural(amount, noun) for amount, noun in counts if amount]
    return " · ".join([f"{plural(len(records), 'run')}, {count(failed)} failed", *words])


def _notices(studies: Sequence[Study], records: Sequence[Record], contents: Contents) -> list[str]:
    notices = []
    for preset, changed in (each for study in studies for each in presets_of(study)):
        if changed:
            settings = f"other settings than the preset's: {join(changed)}"
            notices.append(f"The runs of the preset {preset.name} were made with {settings}.")
        else:
            title = preset.title if preset.title.endswith("?") else f"{preset.title}."
            notices.append(f"{title} {' '.join(preset.question.split())}")
    if "photos" in _values(records, "dataset"):
        notices.append(PHOTOS)
    sources = {str((record.get("data") or {}).get("source")) for record in records}
    for source in sorted(source for source in sources if source.startswith("folder ")):
        notices.append(f"The data are those of the {source}, not the official archive: see below for their SHA-256.")
    if len(studies) > 1:
        notices.append(
            f"The folder holds {len(studies)} settings. They are reported one after the other; nothing is compared or "
            "averaged across them."
        )
    if damaged := len(contents.damaged):
        verb, them = ("is not an intact run", "it is") if damaged == 1 else ("are not intact runs", "they are")
        notices.append(f"{plural(damaged, 'file')} in runs/ {verb}; {them} left out.")
    if other := len(contents.other):
        verb, them = ("is", "it is") if other == 1 else ("are", "they are")
        layouts = join([str(layout) for layout in sorted(set(contents.other.values()))])
        notices.append(f"{plural(other, 'file')} in runs/ {verb} of layout {layouts}, not {SCHEMA}; {them} left out.")
    environments = [record.get("environment") or {} for record in records]
    commits = {(environment.get("lrbench"), environment.get("commit")) for environment in environments}
    if len(commits) > 1:
        notices.append(f"The runs come from {len(commits)} versions of the code: see the environment below.")
    if len({tuple(environment.get(name) for name in ("torch", "numpy", "scipy")) for environment in environments}) > 1:
        notices.append("The runs come from several versions of torch, numpy or scipy: see the environment below.")
    if any(environment.get("dirty") for environment in environments):
        notices.append("Some runs come from a working tree with uncommitted changes.")
    if len({(environment.get("processor"), environment.get("device")) for environment in environments}) > 1:
        notices.append("The runs come from several machines; their times and peaks do not compare.")
    return list(dict.fromkeys(notices))


def _values(records: Sequence[Record], key: str) -> list[str]:
    return list(dict.fromkeys(str(record["config"].get(key)) for record in records))

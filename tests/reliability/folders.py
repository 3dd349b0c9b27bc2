"""What a results folder must be after trouble: that of an undisturbed grid, but for times."""

import csv
import io
from pathlib import Path

from lrbench.store import read_folder

TIMES = {"seconds", "started", "finished"}
WITHOUT_TIMES = ("accuracy", "differences", "error", "ranks", "cuts", "bytes")


def tables(folder: Path) -> dict[str, bytes]:
    """A report's tables, figures and summary, the columns with times taken out."""
    found = {"summary.md": _summary((folder / "summary.md").read_text(encoding="utf-8"))}
    for name in ("runs.csv", "epochs.csv", "layers.csv"):
        rows = list(csv.reader(io.StringIO((folder / name).read_text(encoding="utf-8"))))
        kept = [place for place, column in enumerate(rows[0]) if column not in TIMES]
        found[name] = "\n".join(",".join(row[place] for place in kept) for row in rows).encode()
    for name in WITHOUT_TIMES:
        for file in (folder / "figures").glob(f"{name}.*"):
            found[file.name] = file.read_bytes()
    return found


def _summary(text: str) -> bytes:
    """A summary without its columns of times, and without what follows the data: commits and commands."""
    kept, timed = [], set()
    for line in text.partition("**Environment**")[0].splitlines():
        cells = line.split(" | ")
        timed = timed or {place for place, cell in enumerate(cells) if cell in TIMES} if line.startswith("|") else set()
        kept.append(" | ".join(cell for place, cell in enumerate(cells) if place not in timed))
    return "\n".join(kept).encode()


def differences(folder: Path, reference: Path) -> list[str]:
    """What is not as in an undisturbed grid's folder."""
    found = [f"{name} is left over" for name in left_over(folder)]
    names = [sorted(path.name for path in (place / "runs").glob("*.json")) for place in (folder, reference)]
    if names[0] != names[1]:
        found.append(f"the runs are {names[0]}, not {names[1]}")
    contents = read_folder(folder)
    found += [f"{path.name}: {reason}" for path, reason in contents.left_out.items()]
    found += [f"run {record['id']} failed: {record['reason']}" for record in contents.records if record["reason"]]
    if (mine := tables(folder)) != (theirs := tables(reference)):
        found += [
            f"{name} differs" for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)
        ]
    return found


def left_over(folder: Path) -> list[str]:
    """Files that an undisturbed grid leaves none of."""
    return [
        str(path.relative_to(folder)) for pattern in ("*.part", "*.pt", ".holder") for path in folder.rglob(pattern)
    ]

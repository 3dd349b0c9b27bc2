"""Run files and checkpoints are cut short or have bytes flipped: each is found, kept under another name, done again."""

import random
import shutil
import signal
from pathlib import Path

import faults
from findings import Findings
from folders import differences
from kills import undisturbed

from lrbench.files import DamagedFileError, read_sealed
from lrbench.store import read_folder

COMMANDS = 1000
"""Of so many files that are damaged and read, one is left to the command."""


def try_damages(count: int, seed: int, base: Path) -> Findings:
    """Damage ``count`` files and read them; leave every thousandth, but at least two, to the command."""
    draw, found, reference = random.Random(seed), Findings("A file cut short or with flipped bytes"), base / "reference"
    whole = undisturbed(reference, base, found)
    half = base / "half"  # one run finished, one with a checkpoint
    saved = [at for at, name in enumerate(whole.points, 1) if name.startswith("replaced checkpoints/")]
    killed = faults.run(faults.command(half), half, base, faults.killing(saved[2]))
    found.expect(killed.status == -signal.SIGKILL, f"the grid to damage ended with {killed.status}")
    (run,), (checkpoint,) = (half / "runs").glob("*.json"), (half / "checkpoints").glob("*.pt")
    for file, reading in ((run, _read_run), (checkpoint, _read_checkpoint)):
        content = file.read_bytes()
        original = reading(file)
        for number in range(count // 2):
            kind, damaged = _damage(content, draw)
            file.write_bytes(damaged)
            found.count(f"read: a {_name(file)} {kind}")
            read = reading(file)
            # Between JSON's words white space may change, and nothing else may pass.
            found.expect(
                read in (None, original), f"seed {seed}: a {_name(file)} {kind} ({number}) was taken for whole"
            )
        file.write_bytes(content)
    for number in range(max(2, count // COMMANDS)):
        folder = base / "damaged"
        shutil.copytree(half, folder)
        file = folder / (run, checkpoint)[number % 2].relative_to(half)
        kind, damaged = _damage(file.read_bytes(), draw)
        file.write_bytes(damaged)
        harmless = file.suffix == ".json" and _read_run(file) is not None  # white space
        what = f"seed {seed}, damage {number}: a {_name(file)} {kind}"
        ended = faults.run(faults.command(folder), folder, base)
        found.count(f"command: a {_name(file)} {kind}")
        found.expect(ended.status == 0, f"{what}: the command ended with {ended.status}: {ended.err}")
        if not harmless:
            aside = file.with_name(f"{file.name}.corrupt")
            found.expect(aside.exists() and aside.read_bytes() == damaged, f"{what}: it was not kept")
            found.expect(file.name in ended.err, f"{what}: it was not named")
        for difference in differences(folder, reference) if ended.status == 0 else ():
            found.expect(False, f"{what}: {difference}")
        shutil.rmtree(folder)
    return found


def _damage(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Cut a file short, or flip some bits."""
    if draw.random() < 0.3:
        return "cut short", content[: draw.randrange(len(content))]
    flipped = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 20))):
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return "with flipped bits", bytes(flipped)


def _read_run(file: Path) -> object:
    """What a run file says to who reads its folder; None where it is left out."""
    return next(iter(read_folder(file.parents[1]).records), None)


def _read_checkpoint(file: Path) -> object:
    try:
        return bytes(read_sealed(file))
    except DamagedFileError:
        return None


def _name(file: Path) -> str:
    return "run file" if file.suffix == ".json" else "checkpoint"

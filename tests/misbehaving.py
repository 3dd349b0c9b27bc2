"""Compressors of another package that end, hang or crash in their first block, unless the file BEHAVE is there."""

import os
import signal
import time
from pathlib import Path

from lrbench.compressors.svd import TruncatedSVD


class _Misbehaving(TruncatedSVD):
    def factorize(self, blocks):
        if not Path(os.environ["BEHAVE"]).exists():
            Path(os.environ["BEHAVE"] + ".pid").write_text(str(os.getpid()))
            self.misbehave()
        return super().factorize(blocks)


class Killed(_Misbehaving):
    def misbehave(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Crashing(_Misbehaving):
    def misbehave(self):
        os.kill(os.getpid(), signal.SIGSEGV)


class Hanging(_Misbehaving):
    def misbehave(self):
        time.sleep(600)


class Raising(_Misbehaving):
    def misbehave(self):
        raise MemoryError("not enough")


METADATA = "Metadata-Version: 2.1\nName: misbehaving\nVersion: 1\n"
ENTRY_POINTS = """[lrbench.compressors]
killed = misbehaving:Killed
crashing = misbehaving:Crashing
hanging = misbehaving:Hanging
raising = misbehaving:Raising
"""


def install(folder: Path) -> dict[str, str]:
    """Make the package as if it were installed, and give the environment that finds it."""
    metadata = folder / "misbehaving-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(METADATA)
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "misbehaving.py").write_bytes(Path(__file__).read_bytes())
    return {"PYTHONPATH": str(folder), "BEHAVE": str(folder / "behave"), "OMP_NUM_THREADS": "1"}

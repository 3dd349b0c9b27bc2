"""A share of the reliability trials for the tests, in a process of its own: it forks the commands that it kills."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def tried(kind: str, share: int, seed: int = 0) -> dict[str, Any]:
    """Try one kind so often and say what was tried and found."""
    command = [sys.executable, "-m", "tests.reliability", kind, "--share", str(share), "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.stdout, done.stderr
    findings: dict[str, Any] = json.loads(done.stdout)
    return findings

"""Shared by all tests."""

import os
import tempfile
from pathlib import Path

import torch
from hypothesis import settings

# Test processes run side by side: threads that wait for a busy core make them many times slower.
torch.set_num_threads(1)

# What hypothesis draws is the same at every commit, until a test or what it draws from is changed.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# The locks that keep runs on one machine apart are in the temporary folder: tests neither wait for other runs of their
# user nor hold them up.
_folder = Path(tempfile.gettempdir()) / f"lrbench-tests-{os.getuid()}"
_folder.mkdir(exist_ok=True)
os.environ["TMPDIR"] = tempfile.tempdir = str(_folder)

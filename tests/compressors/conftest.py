"""Makes the modules of ``tests/`` importable when this folder is run alone, and keeps every library to one thread."""

import sys
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[1]))

pytest.register_assert_rewrite("lrbench.contract")  # failed checks show what they saw

# Two threads that wait for each other on a shared core cost far more than the small blocks of these tests.
torch.set_num_threads(1)
threadpool_limits(1)

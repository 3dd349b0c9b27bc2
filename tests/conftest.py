"""Shared by all tests."""

import torch

# Test processes run side by side: threads that wait for a busy core make them many times slower.
torch.set_num_threads(1)

"""Measuring: each file answers one question and knows nothing of the others."""

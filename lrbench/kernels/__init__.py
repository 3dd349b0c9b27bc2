"""Compiled inner loops for the CPU, a block at a time: each answers to a plain torch version that other devices run."""

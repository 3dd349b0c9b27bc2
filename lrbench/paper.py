"""The numbers that the paper prints, for the first layer and a batch of 100 images in float32."""

__all__ = ["EPS", "FACTOR_BYTES", "IM2COL_BYTES", "INPUT_BYTES"]

EPS = 0.1
"""The tolerance of its stopping rule."""
IM2COL_BYTES = 11_059_200
"""Of the lowered blocks, mask 000000: 100 · 27 · 1024 · 4."""
FACTOR_BYTES = 2_592_556
"""Of U and V, mask 100000."""
INPUT_BYTES = 100 * 3 * 32 * 32 * 4
"""Of the images themselves; the paper does not print it."""

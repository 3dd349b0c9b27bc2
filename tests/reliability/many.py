"""Thousands of runs in one folder: listing, going on and reporting take time in proportion, and less than a minute."""

import itertools

from report_records import make_record

from lrbench.store import Record

BOUND = 60.0
"""Seconds of one core, for each of the three."""

SEEDS = 10


def make_records(count: int) -> list[Record]:
    """Make a grid's records: plain runs, and cells of ten seeds that differ in mask, compressor, eps and path."""
    masks = [f"{bits:06b}" for bits in range(63, 0, -2)]
    cells = itertools.product(
        masks, ("svd", "aca", "aca-estimate", "rsvd", "qr-svd"), range(1, 20), ("both", "backward")
    )
    records = [make_record("000000", seed=seed, accuracy=0.47 + 0.001 * seed) for seed in range(SEEDS)]
    for mask, compressor, step, path in cells:
        if len(records) >= count:
            break
        for seed in range(SEEDS):
            records.append(make_record(mask, compressor, seed, 0.46 + 0.001 * seed, eps=0.05 * step, path=path))
    return records

"""The compressor that ``--compressor`` names keeps the contract."""

import pytest

from lrbench.compressors import get_compressor
from lrbench.contract import CompressorContract, Make


class TestCompressor(CompressorContract):
    """Every check, on one class."""

    @pytest.fixture
    def make(self, request: pytest.FixtureRequest) -> Make:
        """Take the class that the command line names."""
        name = request.config.getoption("--compressor", None)
        if name is None:
            pytest.fail("name a compressor: -p lrbench.contract --compressor ./FILE.py:CLASS", pytrace=False)
        return lambda **options: get_compressor(name, **options)

"""The contract: what every compressor must do, whatever its method. It needs pytest and hypothesis.

Run it on a class of your own, from a file or registered::

    pytest --pyargs lrbench.contract -p lrbench.contract --compressor ./mine.py:Mine

or in your own tests, where ``make`` may be anything that gives a compressor when it is called with ``eps=...``::

    class TestMine(lrbench.contract.CompressorContract):
        @pytest.fixture
        def make(self):
            return Mine

The checks read the class's traits, such as ``guarantee``, ``pooled`` and ``low_rank``, and hold it to what they say:
what there is to say of ranks is asked of low-rank methods only. A class that takes ``factors`` (see
:class:`lrbench.Compressor`) is tested with it, too.
"""

import pytest

from lrbench.compressors import compressor_class
from lrbench.contract.comparing import Make
from lrbench.contract.dependence import DependenceChecks
from lrbench.contract.drawn import DrawnChecks
from lrbench.contract.half_factors import HalfFactorChecks
from lrbench.contract.not_finite import NotFiniteChecks
from lrbench.contract.results import ResultChecks
from lrbench.contract.tolerance import ToleranceChecks

__all__ = ["CompressorContract", "Make", "pytest_addoption", "pytest_configure"]


class CompressorContract(
    ResultChecks, ToleranceChecks, DependenceChecks, HalfFactorChecks, NotFiniteChecks, DrawnChecks
):
    """Override the fixture ``make`` and inherit every check."""

    @pytest.fixture
    def make(self) -> Make:
        """What gives a compressor when it is called with ``eps=...``."""
        raise NotImplementedError("override the fixture make: it gives a compressor when called with eps=...")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--compressor``, where this package is named as a plug-in: ``-p lrbench.contract``."""
    parser.addoption("--compressor", metavar="NAME", help="held to lrbench.contract: a name, or ./FILE.py:CLASS")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what is no compressor once, not in every test."""
    name = config.getoption("--compressor")
    if name is None:
        raise pytest.UsageError("no compressor is named: give --compressor NAME, or --compressor ./FILE.py:CLASS")
    try:
        compressor_class(name)
    except (LookupError, TypeError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error

"""What was tried, how often, and what was found."""

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Findings"]


@dataclass
class Findings:
    """The count of each kind of trial, measured values, and a sentence for everything that is not as it should be."""

    title: str
    tried: Counter[str] = field(default_factory=Counter)
    measured: dict[str, str] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    def count(self, kind: str, amount: int = 1) -> None:
        """Count a trial."""
        self.tried[kind] += amount

    def expect(self, fulfilled: bool, otherwise: str) -> None:
        """Note what is not as expected."""
        if not fulfilled:
            self.found.append(otherwise)

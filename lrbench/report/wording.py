"""How numbers and lists read, on the page, in the summary and in the figures alike."""

import math
from collections.abc import Sequence

__all__ = ["count", "join", "number", "percent", "plain_text", "plural", "probability", "shape", "signed", "span"]

NO_BREAK = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"


def number(value: float | None, digits: int = 2) -> str:
    """Write a number with a true minus sign; a missing one is a dash."""
    if value is None or math.isnan(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")  # no "-0.0"
    return text.replace("-", MINUS)


def signed(value: float | None, digits: int = 1) -> str:
    """Write a difference: always with its sign, unless it is zero."""
    text = number(value, digits)
    return f"+{text}" if value is not None and value > 0 and float(text.replace(",", "")) != 0 else text


def count(value: float | None) -> str:
    """Write a whole number with separators: ``11,059,200``."""
    return number(value, 0)


def shape(m: int, n: int | None) -> str:
    """Write the shape of a block: ``27 × 1024``; calls of a layer may differ in n, which is a dash then."""
    return f"{m} × {MISSING if n is None else n}"


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share, in [0, 1], as a percentage."""
    return MISSING if share is None or math.isnan(share) else f"{number(100 * share, digits)} %"


def probability(value: float | None) -> str:
    """Write a p-value, of which none is zero."""
    least = 0.001
    return f"< {least}" if value is not None and value < least else number(value, 3)


def general(value: float | None) -> str:
    """Write a setting such as eps in its shortest form."""
    return MISSING if value is None or math.isnan(value) else f"{value:g}"


def relative_error(value: float | None, eps: float | None) -> str:
    """Write an error so that it cannot look equal to the eps that it missed or kept."""
    if value is None or math.isnan(value):
        return MISSING
    for digits in range(3, 9):
        text = f"{value:.{digits}g}"
        if eps is None or value == eps or float(text) != eps:
            return text
    return repr(value)


def times(value: float | None) -> str:
    """Write a ratio to the plain model's, with one more digit where it would look equal to 1 and is not."""
    near = value is not None and value != 1 and number(value) == number(1)
    return number(value, 3 if near else 2)


def span(low: float, high: float, digits: int = 2) -> str:
    """Write a range, or one number where both ends read the same."""
    first, last = number(low, digits), number(high, digits)
    return first if first == last else f"{first} to {last}"


def plural(amount: int, noun: str) -> str:
    """Write ``1 seed``, ``2 seeds``."""
    return f"{count(amount)} {noun}{'' if amount == 1 else 's'}"


def join(words: Sequence[str]) -> str:
    """Write a list as English does: ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def plain_text(text: str, longest: int = 40) -> str:
    """Make a name from a record fit for a figure: printable, and cut in its middle where it is too long."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    half = (longest - 1) // 2
    return printable if len(printable) <= longest else f"{printable[:half]}…{printable[-half:]}"

"""Abbreviations and units of measure, which every customer writes in another way."""

from __future__ import annotations

import re

import numpy as np

# Spellings of one thing. After a number; the first of each row is what dictionaries have.
_UNITS = (
    ("inch", "inches", "in.", "in", '"', "''", "”"),
    ("foot", "feet", "ft.", "ft", "'", "’"),
    ("yard", "yards", "yd.", "yd"),
    ("square foot", "square feet", "sq. ft.", "sq ft", "sqft"),
    ("cubic foot", "cubic feet", "cu. ft.", "cu ft"),
    ("pound", "pounds", "lb.", "lbs.", "lb", "lbs"),
    ("ounce", "ounces", "oz.", "oz"),
    ("gallon", "gallons", "gal.", "gal"),
    ("quart", "quarts", "qt.", "qt"),
    ("millimetre", "millimeter", "millimeters", "mm"),
    ("centimetre", "centimeter", "centimeters", "cm"),
    ("metre", "meter", "meters", "m"),
    ("kilogram", "kilograms", "kg"),
    ("gram", "grams", "g"),
    ("litre", "liter", "liters", "l"),
    ("millilitre", "milliliter", "milliliters", "ml"),
    ("watt", "watts", "w"),
    ("volt", "volts", "v"),
    ("amp", "amps", "ampere"),
    ("piece", "pieces", "pc.", "pc", "pcs"),
    ("pack", "pk", "pk.", "count", "ct"),
)
# On their own.
_ABBREVIATIONS = (
    ("with", "w/"),
    ("without", "w/o"),
    ("and", "&"),
    ("stainless steel", "ss"),
    ("white", "wht"),
    ("black", "blk"),
    ("package", "pkg"),
    ("diameter", "dia.", "dia"),
    ("left hand", "l/h", "lh"),
    ("right hand", "r/h", "rh"),
    ("medium", "med"),
    ("large", "lg"),
    ("assembly", "assy"),
    ("adjustable", "adj"),
)


def _pattern(rows: tuple[tuple[str, ...], ...], before: str) -> re.Pattern[str]:
    spellings = sorted((s for row in rows for s in row), key=len, reverse=True)
    # Not inside a word ("5 inserts"), nor where it is no unit ("3 in 1").
    return re.compile(
        f"{before}({'|'.join(map(re.escape, spellings))})(?![\\w/]| 1\\b)", re.IGNORECASE
    )


_FOUND = (
    (_UNITS, _pattern(_UNITS, r"(?<=\d)(?P<gap>[\s-]?)")),
    (_ABBREVIATIONS, _pattern(_ABBREVIATIONS, r"(?P<gap>(?<![\w/]))")),
)


def respell_unit(text: str, rng: np.random.Generator) -> str:
    """Writes one unit of measure or common abbreviation in another way: 5 in., 5 inch, 5".

    Units are changed after a number alone. A word of several things ("in", "m") is read as what it
    means in descriptions of products.

    Args:
        text: any text.
        rng: decides which, and how.

    Returns:
        The text with one other spelling; as it was where there is nothing to spell otherwise.
    """
    found = [(rows, match) for rows, pattern in _FOUND for match in pattern.finditer(text)]
    if not found:
        return text
    rows, match = found[int(rng.integers(len(found)))]
    spelling = match.group(2).lower()
    row = next(row for row in rows if spelling in row)
    other = str(rng.choice([one for one in row if one != spelling]))
    gap = match["gap"]
    if rows is _UNITS:  # 5", 5 in, 5-in; never 5-square feet
        marks = not other[0].isalpha()
        gap = "" if marks else gap if gap == "-" and " " not in other else " "
    return text[: match.start()] + gap + other + text[match.end() :]

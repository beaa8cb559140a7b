"""The option --gains: what each grade is worth to nDCG."""

from __future__ import annotations

import math
from typing import Any

import click


class _Gains(click.ParamType):
    name = "GAIN,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[int, float]:
        try:
            gains = {grade: float(gain) for grade, gain in enumerate(value.split(","))}
        except ValueError:
            gains = {}
        if not gains or not all(0 <= gain < math.inf for gain in gains.values()):
            self.fail("expected one number a grade, 0 or more, as in 0,1,10,100", param, ctx)
        return gains


gains_option = click.option(
    "--gains", type=_Gains(), help="nDCG gain of grades 0,1,...; the grades if absent."
)

"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from training.report.figures import curves
from training.report.results import ADAPTED_VIEWS, UNTRAINED, Report
from training.report.summary import LABELS, VIEWS, label, p_value


def render(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("training.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "p": p_value,
        "signed": lambda value: f"{value:+.3f}".replace("-", "−"),
        "count": lambda value: f"{value:,}",
        "bytes": lambda value: f"{value / 2**30:.1f} GB",
    }
    figures = {view: curves(report, view) for view in ADAPTED_VIEWS}
    return environment.get_template("page.html.jinja").render(
        report=report,
        figures={view: Markup(svg) for view, svg in figures.items() if svg},
        views=VIEWS,
        labels=LABELS,
        label=label,
        untrained=UNTRAINED,
    )

"""The k-shot report: how good each method is with 8 pairs, with 32, with 2,000, and what it costs.

plan.py                    what is asked for: data, systems, numbers of shots, draws
cells.py                   what was measured, one file a draw, so that a report can be taken up
measuring.py               adapting and evaluating one draw
sentence_transformers.py   the peer, fine-tuned with its usual recipe
results.py                 from cells to the numbers of the page
figures.py, page.py        the page itself
"""

from training.report.build import build_report
from training.report.plan import BASELINES, Plan, Task
from training.report.results import Report

__all__ = ["BASELINES", "Plan", "Report", "Task", "build_report"]

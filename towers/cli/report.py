"""``towers report``: what each method makes of few shots and of more, on one page."""

from __future__ import annotations

import importlib.util
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towers.cli.gains import gains_option
from towers.cli.item_vectors import precision_option
from towers.cli.lexical import Lexical, lexical_option, lexical_scorer
from towers.cli.output import emit, json_option, progress_bars, say
from towers.errors import InputError

if TYPE_CHECKING:
    from training.report import Report

# As in `training.report.plan`, which is not imported for `--help`.
_BASELINES = "zero-shot,bm25,hybrid,sentence-transformers"
_SHOTS = "0,8,32,128,512,2000"
# The extra `report`: name of the module, name of the package.
_NEEDED = {"matplotlib": "matplotlib", "jinja2": "Jinja2", "scipy": "scipy"}


class _Words(click.ParamType):
    name = "NAME,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        return tuple(word.strip() for word in value.split(","))


class _Counts(click.ParamType):
    name = "N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        words = [word.strip() for word in value.split(",")]
        if not all(word.isdecimal() for word in words):
            self.fail(f"{value!r} is no list of numbers, as in {_SHOTS}", param, ctx)
        return tuple(map(int, words))


class _Report(click.Command):
    """Keeps the words it was called with: the page shows them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["words"] = shlex.join([*ctx.command_path.split(), *args])
        return super().parse_args(ctx, args)


@click.command("report", cls=_Report, short_help="Learning curves over shots, as a page.")
@click.option("--catalog", required=True, type=click.Path(), help="Catalogue file.")
@click.option("--train", "train_path", required=True, type=click.Path(), help="Interactions file.")
@click.option("--test", "test_path", required=True, type=click.Path(), help="Judged queries.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Report folder.")
@click.option(
    "--methods",
    type=_Words(),
    default="zero-shot,linear,full,auto",
    show_default=True,
    help="Methods of adaptation; docs/methods.md.",
)
@click.option(
    "--shots",
    type=_Counts(),
    help=f"Numbers of positive pairs; of {_SHOTS} those the interactions hold if absent.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Draws for each number of shots; twice as many up to 32 shots.",
)
@click.option(
    "--baselines",
    type=_Words(),
    help=f"What to compare with: {_BASELINES} if absent, the last one where it is installed.",
)
@click.option(
    "--measure", default="nDCG@10", show_default=True, help="As in R(rel=2)@100 or RR@10."
)
@gains_option
@click.option(
    "--min-grade", type=int, help="Lowest grade of a positive pair, and of a relevant item."
)
@lexical_option("auto (the default): chosen from the shots; off: towers alone.")
@click.option("--config", "config_path", type=click.Path(), help="TOML or JSON configuration.")
@precision_option
@click.option("--finished-only", is_flag=True, help="Report what is finished; measure nothing.")
@click.option("--strict", is_flag=True, help="Refuse interactions with unknown items.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    catalog: str,
    train_path: str,
    test_path: str,
    output: Path,
    methods: tuple[str, ...],
    shots: tuple[int, ...] | None,
    seeds: int,
    baselines: tuple[str, ...] | None,
    measure: str,
    gains: dict[int, float] | None,
    min_grade: int | None,
    lexical: Lexical,
    config_path: str | None,
    precision: str,
    finished_only: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Measure methods of adaptation with few shots and with more, and write a page about it.

    Each is trained on several draws of each number of shots and asked all test queries over the
    whole catalogue, by the towers alone and with words. OUTPUT/report.html is the page,
    OUTPUT/report.json holds the same numbers. A report that was interrupted goes on when the same
    command is given again; with more --seeds only the new draws are measured.
    """
    for module, package in _NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise InputError(f"towers report needs {package}: pip install 'fewshot-towers[report]'")
    from towers.encoding import fast_dtype
    from training.catalog import Catalog
    from training.config import TrainConfig
    from training.interactions import Interactions
    from training.report import Plan, Task, build_report
    from training.report.sentence_transformers import why_not

    # That every draw has towers of its own, each compiled anew, is as it should be.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    config = TrainConfig.read(config_path, min_grade=min_grade, lexical=lexical)
    products = Catalog.read(catalog)
    interactions = Interactions.read(train_path, products, strict=strict).with_one_spelling()
    judgements = Interactions.read(test_path, products, strict=strict)
    for path, read in ((train_path, interactions), (test_path, judgements)):
        say(f"{path}: {len(read):,} judged pairs of {len(read.queries):,} queries")
        if read.unknown_items.rows:
            say(f"left out: {read.unknown_items}")
    notes = []
    if shots is None:
        there = len(interactions.positives(config.min_grade))
        default = tuple(map(int, _SHOTS.split(",")))
        shots = tuple(count for count in default if count <= there)
        if left_out := [f"{count:,}" for count in default if count > there]:
            notes.append(
                f"Not measured with {' and '.join(left_out)} shots: there are {there:,} pairs."
            )
    peerless = why_not(config)
    if baselines is None:
        baselines = tuple(_BASELINES.split(","))
        if peerless:
            baselines = baselines[:-1]
            notes.append(f"sentence-transformers was not measured: {peerless}.")
    elif "sentence-transformers" in baselines and peerless:
        raise InputError(f"--baselines sentence-transformers: {peerless}")
    for note in notes:
        say(note)
    task = Task(
        config,
        products,
        interactions,
        judgements,
        measure=measure,
        gains=gains,
        dtype=fast_dtype() if precision == "auto" else precision,
    )
    plan = Plan(methods=methods, shots=shots, seeds=seeds, baselines=baselines)
    with progress_bars() as progress:
        report = build_report(
            task,
            plan,
            output,
            lexical=lexical_scorer,
            command=context.meta["words"],
            notes=notes,
            measure=not finished_only,
            progress=progress,
            told=say,
        )
    page, data = output / "report.html", output / "report.json"
    emit(
        {"page": str(page), "data": str(data), "summary": report.summary, "notes": report.notes},
        as_json,
        lambda: _said(report, page),
    )


def _said(report: Report, page: Path) -> str:
    return "\n".join([*report.summary, *report.notes, f"Written to {page}"])

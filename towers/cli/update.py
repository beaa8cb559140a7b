"""``towers update``: go on from a run with new interactions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towers.cli.histories import (
    ContextOptions,
    carry_over,
    contexts_options,
    fit_and_save,
    histories_option,
    load_recommender,
    read_histories,
    read_reviews,
    reviews_option,
)
from towers.cli.item_vectors import item_vectors
from towers.cli.lexical import Lexical, lexical_option, lexical_scorer
from towers.cli.output import emit, json_option, progress_bars, say

if TYPE_CHECKING:
    import numpy as np

    from towers.retriever import Retriever
    from training.catalog import Catalog
    from training.interactions import Interactions

# As in `training.update`, which is not imported for `--help`.
METHODS = ["full", "lora", "adalora", "bitfit", "top"]


@click.command("update", short_help="Go on from a run with new interactions.")
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Run to go on from.")
@click.option("--catalog", required=True, type=click.Path(), help="Catalogue file, as it is now.")
@click.option("--interactions", required=True, type=click.Path(), help="New interactions.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="New run folder.")
@click.option(
    "--replay", type=click.Path(), help="Old interactions, if not those that the run remembers."
)
@click.option(
    "--judgements",
    type=click.Path(),
    help="The old evaluation. Old queries are held out of training for it if absent.",
)
@click.option("--measure", help="What versions are compared by; nDCG@10 if absent.")
@click.option(
    "--max-drop",
    type=float,
    help="How much less of it on the old evaluation is put up with; .005 if absent.",
)
@histories_option("What users took, to fit the run's recommendations anew.")
@reviews_option()
@contexts_options
@click.option("--method", type=click.Choice(METHODS), help="How to adapt; docs/methods.md.")
@lexical_option("auto: chosen again. As the run was trained if absent.")
@click.option("--min-grade", type=int, help="Lowest grade of a positive pair.")
@click.option("--epochs", type=int, help="Passes over the pairs, at most; the method's if absent.")
@click.option("--batch-size", type=int, help="Pairs a batch.")
@click.option("--learning-rate", type=float, help="Peak learning rate.")
@click.option("--seed", type=int, help="Decides draw, split, order and dropout.")
@click.option("--config", "config_path", type=click.Path(), help="TOML or JSON configuration.")
@click.option("--strict", is_flag=True, help="Refuse new interactions with unknown items.")
@json_option
def command(
    model: Path,
    catalog: str,
    interactions: str,
    output: Path,
    replay: str | None,
    judgements: str | None,
    measure: str | None,
    max_drop: float | None,
    histories: str | None,
    reviews: str | None,
    users: str | None,
    user_columns: tuple[str, ...],
    context: tuple[str, ...],
    method: str | None,
    lexical: Lexical,
    min_grade: int | None,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    seed: int | None,
    config_path: str | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Go on from a run with new interactions, without forgetting the old; docs/update.md.

    The new version is refused, with exit status 1 and no new run folder, where it does worse than
    the old one on the old evaluation by more than --max-drop. The configuration is that of the run;
    a file and options go over it. An update that was interrupted goes on when the same command is
    given again.
    """
    if reviews and not histories:
        raise click.UsageError("--reviews needs --histories")
    known = ContextOptions(users, user_columns, context)
    known.check(histories)
    from training.catalog import Catalog
    from training.run_folder import RunFolder
    from training.update import UpdateRefused, read_update_config, update

    parent = RunFolder.existing(model)
    config = read_update_config(
        parent,
        config_path,
        method=method,
        lexical=lexical,
        min_grade=min_grade,
        seed=seed,
        fit={"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate},
        update={"measure": measure, "max_drop": max_drop},
    )
    products = Catalog.read(catalog)
    new = _read(interactions, products, "new", strict=strict)
    old = None if replay is None else _read(replay, products, "old")
    judged = None if judgements is None else _read(judgements, products, "evaluation")
    people = (
        None if histories is None else read_histories(histories, products, strict, known.of_file)
    )
    written = read_reviews(reviews, products, people, strict) if reviews and people else None
    contexts = None if people is None else known.read(people)

    def encode(folder: Path, retriever: Retriever, texts: Sequence[str]) -> np.ndarray:
        # The old run stays as it is: what is not found there is not written there either.
        return item_vectors(folder, retriever, texts, "auto", keep=folder == output)

    with progress_bars() as progress:

        def also(retriever: Retriever) -> dict[str, Any]:
            if people is not None:
                bar = partial(progress, "Learning from histories")
                return fit_and_save(retriever, people, written, contexts, output, config.seed, bar)
            if load_recommender(model) is not None:
                return carry_over(model, retriever, output)
            return {}

        refused: str | None = None
        try:
            metrics = update(
                parent,
                config,
                products,
                new,
                output,
                replay=old,
                judgements=judged,
                lexical=lexical_scorer,
                histories=people,
                reviews=written,
                contexts=contexts,
                also=also,
                encode=encode,
                progress=progress,
            )
        except UpdateRefused as error:
            refused, metrics = str(error), error.metrics
    facts = {"output": None if refused else str(output), "refused": refused, **metrics}
    if refused:
        say(f"Refused: {refused}")
    if as_json or not refused:
        emit(facts, as_json, lambda: _report(output, metrics))
    return 1 if refused else 0


def _read(path: str, products: Catalog, what: str, *, strict: bool = False) -> Interactions:
    from training.interactions import Interactions

    judgements = Interactions.read(path, products, strict=strict)
    say(f"{what}: {len(judgements):,} judged pairs of {len(judgements.queries):,} queries")
    if judgements.unknown_items.rows:
        say(f"left out: {judgements.unknown_items}")
    return judgements


def _report(output: Path, metrics: dict[str, Any]) -> str:
    update, lexical = metrics["update"], metrics["lexical"]
    gate, compared = update["gate"], update["held_out"]
    lines = [
        f"Went on from {update['parent']['path']} with {update['new_pairs']:,} new pairs and "
        f"{update['replayed_pairs']:,} of {update['remembered_pairs']:,} old ones "
        f"in {metrics['fit']['seconds']:.1f} s"
    ]
    if update["lost_pairs"]:
        lines.append(f"Left out {update['lost_pairs']:,} old ones, whose items are gone")
    if not update["share"]:
        lines.append("Kept the towers as they were: training finds no more of the new queries")
    elif update["share"] < 1:
        lines.append(f"Kept {update['share']:.0%} of the way from the old towers to the new")
    for name, values in compared.items():
        on = f"{values['queries']} {name} held-out queries"
        lines.append(f"{update['measure']} on {on}: {_change(values)}")
    on = f"{gate['queries']} {gate['on']}"
    lines.append(f"Passed: on {on} {_change(gate)}; {-gate['max_drop']:g} is allowed")
    lines.append(
        f"Lexical weight {lexical['weight']:g}, before {update['lexical_weight_before']:g}: "
        f"{lexical['reason']}"
    )
    if people := metrics.get("recommendation"):
        carried = "carried over" if "carried_over_from" in people else "learned anew"
        lines.append(f"Recommendations {carried}")
    return "\n".join([*lines, f"Model written to {output}"])


def _change(values: dict[str, Any]) -> str:
    spread = ""
    if values["interval_95"] is not None:
        low, high = values["interval_95"]
        spread = f", 95% interval {low:+.4f} to {high:+.4f}"
    return (
        f"{values['before']:.4f} before, {values['after']:.4f} after "
        f"({values['difference']:+.4f}{spread})"
    )

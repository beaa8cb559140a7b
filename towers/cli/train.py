"""``towers train``: adapt towers to a shop's interactions."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towers.cli.histories import (
    ContextOptions,
    contexts_options,
    fit_and_save,
    histories_option,
    read_histories,
    read_reviews,
    reviews_option,
)
from towers.cli.lexical import Lexical, lexical_option, lexical_scorer
from towers.cli.output import emit, json_option, progress_bars, say

if TYPE_CHECKING:
    from training.catalog import Catalog
    from training.config import TrainConfig
    from training.contexts import Contexts
    from training.histories import Histories
    from training.interactions import Interactions
    from training.reviews import Reviews
    from training.stages import Stages
    from training.train import AlsoFit

# Of 27,000 pairs of homedepot towers learn hardly more than of 2,000.
_MANY, _ENOUGH = 10_000, 2_000
# As in `training.config`, which is not imported for `--help`.
METHODS = [
    "auto",
    "full",
    "linear",
    "lora",
    "adalora",
    "bitfit",
    "top",
    "adapters",
    "prefix",
    "distilled",
    "zero-shot",
]


@click.command("train", short_help="Adapt towers to a shop's interactions.")
@click.option("--catalog", required=True, type=click.Path(), help="Catalogue file.")
@click.option("--interactions", type=click.Path(), help="Interactions file; docs/methods.md.")
@histories_option("What users took, for recommendations; docs/recommendations.md.")
@reviews_option()
@contexts_options
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--encoder", help="Installed encoder, checkpoint folder or keras-hub preset.")
@click.option("--shots", type=int, help="Draw this many positive pairs; all if not given.")
@click.option("--method", type=click.Choice(METHODS), help="How to adapt; docs/methods.md.")
@click.option(
    "--warm-up",
    type=click.Choice(["auto", "off", "catalog"]),
    help="Train on pairs made of the catalogue first. auto (the default): where words do not count "
    "and --method auto finds that it helps.",
)
@lexical_option("auto (the default): chosen from the shots; off: cosine alone.")
@click.option("--min-grade", type=int, help="Lowest grade of a positive pair.")
@click.option("--item-text", help='Item text, as in "{title}[ by {brand}][. {description}]".')
@click.option("--numeric", multiple=True, help="Column of numbers to fuse into item vectors.")
@click.option("--categorical", multiple=True, help="Column of categories to fuse, likewise.")
@click.option("--image", is_flag=True, default=None, help="Fuse the column image_embedding.")
@click.option("--epochs", type=int, help="Passes over the pairs, at most; the method's if absent.")
@click.option("--batch-size", type=int, help="Pairs a batch.")
@click.option("--learning-rate", type=float, help="Peak learning rate.")
@click.option(
    "--mixed-precision",
    type=click.Choice(["auto", "float32", "mixed_bfloat16", "mixed_float16"]),
    help="What matrices are multiplied in; auto: bfloat16 where the device has it.",
)
@click.option("--seed", type=int, help="Decides draw, split, order and dropout.")
@click.option(
    "--strategy",
    type=click.Choice(["auto", "mirrored", "multi-worker", "tpu"]),
    help="Devices to train on; docs/devices.md. auto: one, or all GPUs of this machine.",
)
@click.option("--deterministic", is_flag=True, help="The same bits in every run.")
@click.option("--config", "config_path", type=click.Path(), help="TOML or JSON configuration.")
@click.option("--strict", is_flag=True, help="Refuse unknown items.")
@json_option
def command(
    catalog: str,
    interactions: str | None,
    histories: str | None,
    reviews: str | None,
    users: str | None,
    user_columns: tuple[str, ...],
    context: tuple[str, ...],
    output: Path,
    encoder: str | None,
    shots: int | None,
    method: str | None,
    warm_up: str | None,
    lexical: Lexical,
    min_grade: int | None,
    item_text: str | None,
    numeric: tuple[str, ...],
    categorical: tuple[str, ...],
    image: bool | None,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    mixed_precision: str | None,
    seed: int | None,
    strategy: str | None,
    deterministic: bool,
    config_path: str | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Adapt towers to a shop's interactions and write them to a run folder.

    Without --interactions the towers stay as they came, or learn from the catalogue alone (--method
    distilled, --warm-up catalog). With --histories the run also learns to recommend. Options go
    over the configuration file's values. A run that was interrupted goes on when the same command
    is given again.
    """
    from training.config import TrainConfig

    config = TrainConfig.read(
        config_path,
        shots=shots,
        method=method,
        warm_up=warm_up,
        lexical=lexical,
        min_grade=min_grade,
        seed=seed,
        strategy=strategy,
        deterministic=deterministic or None,
        encoder={
            "preset": encoder,
            "item_template": item_text,
            "numeric": list(numeric) or None,
            "categorical": list(categorical) or None,
            "image": image,
        },
        fit={
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "mixed_precision": mixed_precision,
        },
    )
    if interactions is None and ((strict and histories is None) or min_grade is not None):
        raise click.UsageError("--strict and --min-grade need --interactions")
    if reviews and not histories:
        raise click.UsageError("--reviews needs --histories")
    known = ContextOptions(users, user_columns, context)
    known.check(histories)
    from training.catalog import Catalog
    from training.devices import training_devices
    from training.interactions import Interactions

    # What is wrong with the input is said before any device is looked for.
    products = Catalog.read(catalog)
    judgements = None
    if interactions is None:
        say(f"{len(products):,} items, no interactions")
    else:
        judgements = Interactions.read(interactions, products, strict=strict)
        say(
            f"{len(products):,} items, {len(judgements):,} judged pairs "
            f"of {len(judgements.queries):,} queries"
        )
        if judgements.unknown_items.rows:
            say(f"left out: {judgements.unknown_items}")
        _say_which_grades_count(config, judgements)
        _say_if_many(config, judgements)
    people = read_histories(histories, products, strict, known.of_file) if histories else None
    written = read_reviews(reviews, products, people, strict) if reviews and people else None
    contexts = known.read(people) if people else None
    with training_devices(output, config.strategy, deterministic=config.deterministic) as folder:
        metrics = _train(config, products, judgements, people, written, contexts, folder)
    emit({"output": str(output), **metrics}, as_json, lambda: _report(output, metrics))


def _say_which_grades_count(config: TrainConfig, judgements: Interactions) -> None:
    """A hint where good answers and lesser ones are trained on alike: docs/data.md."""
    grades = judgements.grade[judgements.grade >= config.min_grade].tolist()
    counts = sorted(Counter(grades).items())
    if len(counts) > 1:
        pairs = ", ".join(f"{count:,} of grade {grade}" for grade, count in counts)
        say(f"positive pairs: {pairs}; --min-grade {counts[-1][0]} takes the best alone")


def _say_if_many(config: TrainConfig, judgements: Interactions) -> None:
    """A hint where training takes long and brings little more than some of the pairs would."""
    count = int((judgements.grade >= config.min_grade).sum())
    if config.shots is None and count > _MANY and config.method not in ("zero-shot", "linear"):
        say(
            f"{count:,} positive pairs: towers learn hardly more of them than of {_ENOUGH:,} "
            f"(docs/benchmarks.md), and --shots {_ENOUGH} is quicker"
        )


def _train(
    config: TrainConfig,
    products: Catalog,
    judgements: Interactions | None,
    people: Histories | None,
    written: Reviews | None,
    contexts: Contexts | None,
    output: Path,
) -> dict[str, Any]:
    """Trains, with interactions or without."""
    from towers.cli.item_vectors import known_vectors
    from training.label_free import train_label_free
    from training.train import train

    with progress_bars() as progress:
        if judgements is None:
            return train_label_free(
                config,
                products,
                output,
                lexical=lexical_scorer,
                histories=people,
                reviews=written,
                contexts=contexts,
                also=_also(people, written, contexts, config.seed, output, progress),
                progress=progress,
            )
        return train(
            config,
            products,
            judgements,
            output,
            lexical=lexical_scorer,
            known_vectors=partial(known_vectors, output),
            histories=people,
            reviews=written,
            contexts=contexts,
            also=_also(people, written, contexts, config.seed, output, progress),
            progress=progress,
        )


def _also(
    histories: Histories | None,
    reviews: Reviews | None,
    contexts: Contexts | None,
    seed: int,
    output: Path,
    progress: Stages,
) -> AlsoFit | None:
    """What learns from the histories once the towers are trained."""
    if histories is None:
        return None
    bar = partial(progress, "Learning from histories")
    return lambda retriever: fit_and_save(
        retriever, histories, reviews, contexts, output, seed, bar
    )


def _report(output: Path, metrics: dict[str, Any]) -> str:
    fit, lexical, choice = metrics["fit"], metrics["lexical"], metrics["choice"]
    lines = [f"Lexical weight {lexical['weight']:g}: {lexical['reason']}"]
    if people := metrics.get("recommendation"):
        weights = ", ".join(f"{name} {value:.3g}" for name, value in people["weights"].items())
        lines.append(f"Recommendations learned of {people['users']:,} users: {weights}")
        for name, of in people["context"].items():
            lines.append(
                f"Context {name}: {len(of['values'])} values, weight {of['weight']:.3g}, "
                f"where nothing else is known {of['alone']:.3g}"
            )
    if choice is not None:
        share = f", {choice['share']:.0%} of the way" if 0 < choice["share"] < 1 else ""
        lines.insert(0, f"Method {choice['method']}{share}: {choice['reason']}")
    for name, what in (("warm_up", "the catalogue's pairs"), ("distillation", "made-up queries")):
        if part := metrics.get(name):
            kept = f"kept epoch {part['best_epoch']}" if part["best_epoch"] else "not kept"
            lines.append(f"Trained {len(part['losses'])} epochs on {what}, {kept}")
    if attributes := metrics.get("attributes"):
        fused = ", ".join(attributes["fused"]) or "none"
        lines.insert(0, f"Attributes fused: {fused}: {attributes['reason']}")
    if fit is None:
        kind = (
            "Model" if metrics.get("warm_up") or metrics.get("distillation") else "Zero-shot towers"
        )
        return "\n".join([*lines, f"{kind} written to {output}"])
    lines += [
        f"Trained {fit['trained_parameters']:,} parameters on {fit['pairs']:,} pairs "
        f"in {fit['seconds']:.1f} s",
    ]
    if fit["held_out"]:
        scores = " ".join(f"{score:.3f}" for score in fit["held_out"])
        soup = f"the mean of {fit['soup']} trainings" if fit["soup"] > 1 else ""
        when = "and after each epoch" if fit["losses"] else "and after, cross-validated"
        when = f"and of {soup}" if soup else when
        lines.append(
            f"nDCG@10 on {fit['held_out_queries']} held-out queries, before training {when}: "
            f"{scores}"
        )
        kept = f"epoch {fit['best_epoch']}" if fit["losses"] else "the map"
        kept = soup or kept
        lines.append(f"Kept {kept if fit['best_epoch'] else 'zero-shot, which nothing beat'}")
        if fit["share"] < 1:
            lines.append(f"Kept {fit['share']:.0%} of the way from zero-shot to adapted")
    lines.append(f"Model written to {output}")
    return "\n".join(lines)

"""``towers classify``: sort texts into classes, learned from a few examples of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towers.cli.head_output import (
    measures_line,
    require_csv,
    require_new_folder,
    require_options,
    write_predictions,
)
from towers.cli.output import emit, json_option, progress_bar, progress_bars, say
from towers.item_text import ItemTemplate

if TYPE_CHECKING:
    from training.heads.text_vectors import Tower

_TO_FIT = (
    *("text_column", "text", "label_column", "method", "shots_per_class", "folds", "tower"),
    *("max_length", "seed", "strict"),
)


@click.command("classify", short_help="Sort texts into classes learned from a few examples.")
@click.option("--texts", "file", required=True, type=click.Path(), help="File of texts, one a row.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for the head; with --head a CSV file for the rows and their classes.",
)
@click.option("--model", help="Run folder, encoder folder or preset that encodes the texts.")
@click.option("--text-column", help="Column to read.")
@click.option("--text", help='Columns to read, as in "{title}[. {review}]".')
@click.option("--label-column", help="Column that names the class.")
@click.option("--shots-per-class", type=click.IntRange(1), help="Examples of each; all if absent.")
@click.option(
    "--method",
    type=click.Choice(["auto", "prototype", "linear"]),
    default="auto",
    show_default=True,
    help="Nearest class mean, logistic regression, or whichever tests better.",
)
@click.option(
    "--folds",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Parts to test on, each with heads fitted on the other parts; 0 for no test.",
)
@click.option(
    "--tower",
    type=click.Choice(["query", "item"]),
    default="query",
    show_default=True,
    help="Which tower of the model, if they differ.",
)
@click.option("--max-length", type=int, help="Tokens read of a text; 128 if absent.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides draw and folds.")
@click.option("--strict", is_flag=True, help="Refuse rows without text or label, and rare classes.")
@click.option("--head", type=click.Path(path_type=Path), help="Use this head instead of fitting.")
@click.option("--class-probabilities", is_flag=True, help="With --head: a column for each class.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    file: str,
    output: Path,
    model: str | None,
    text_column: str | None,
    text: str | None,
    label_column: str | None,
    shots_per_class: int | None,
    method: str,
    folds: int,
    tower: Tower,
    max_length: int | None,
    seed: int,
    strict: bool,
    head: Path | None,
    class_probabilities: bool,
    as_json: bool,
) -> None:
    """Learn to sort texts into classes, or sort them.

    Without --head, a head on the model's vectors is fitted to the labelled rows of TEXTS, tested
    by cross-validation, and written to the folder OUTPUT.

    With --head, the rows of TEXTS are sorted and written to the CSV file OUTPUT. Where they have
    labels, the head is measured on them.
    """
    if head is not None:
        require_options(context, "with --head", barred=_TO_FIT)
        _predict(file, output, head, model, class_probabilities, as_json)
        return
    require_options(
        context, "without --head", needed=("model", "label_column"), barred=("class_probabilities",)
    )
    if (text is None) == (text_column is None):
        raise click.UsageError("give either --text-column or --text", context)
    if folds == 1:
        raise click.UsageError("--folds is 0, or 2 and more", context)
    require_new_folder(output)
    assert model is not None
    assert label_column is not None
    template = ItemTemplate(f"{{{text_column}}}" if text is None else text)

    from towers.encoding import fast_dtype
    from training.atomic_file import write_json
    from training.heads.labelled_texts import LabelledTexts
    from training.heads.text_classifier import METHODS, fit_text_classifier
    from training.heads.text_vectors import TextVectors
    from training.text_table import TextTable

    table = TextTable.read(file, template)
    labelled = LabelledTexts.of(
        table, label_column, min_rows=max(folds, 1), seed=seed, strict=strict
    )
    say(f"{len(labelled.texts):,} texts of {len(labelled.classes)} classes")
    if str(labelled.left_out):
        say(f"left out: {labelled.left_out}")
    vectors = TextVectors.load(model, tower=tower, max_length=max_length)
    with progress_bars() as progress:
        fitted = fit_text_classifier(
            labelled,
            vectors,
            text=template.pattern,
            label_column=label_column,
            method=next((one for one in METHODS if one == method), None),
            shots_per_class=shots_per_class,
            folds=folds,
            seed=seed,
            dtype=fast_dtype(),
            progress=progress,
        )
    fitted.classifier.save(output)
    facts = {
        "output": str(output),
        "method": fitted.classifier.method,
        "shots": fitted.shots,
        "shots_per_class": shots_per_class,
        "rows": len(labelled.texts),
        "classes": labelled.counts(),
        "left_out": vars(labelled.left_out),
        "folds": folds,
        "seed": seed,
        "data": {"path": table.path, "sha256": table.sha256},
        "quality": {name: quality.as_dict() for name, quality in fitted.quality.items()},
    }
    write_json(output / "metrics.json", facts)

    def report() -> str:
        lines = [f"{name}: {measures_line(q.measures)}" for name, q in fitted.quality.items()]
        if lines:
            counts = labelled.counts()
            most = max(counts, key=lambda name: counts[name])
            share = counts[most] / sum(counts.values())
            lines.append(
                f"mean of {folds} folds ± 95% interval; always {most!r}: {share:.3f} right"
            )
        chosen = f"{fitted.classifier.method} head fitted on {fitted.shots:,} texts"
        return "\n".join([*lines, f"{chosen}, written to {output}"])

    emit(facts, as_json, report)


def _predict(
    file: str,
    output: Path,
    folder: Path,
    model: str | None,
    class_probabilities: bool,
    as_json: bool,
) -> None:
    from towers.encoding import fast_dtype
    from training.heads.text_classifier import TextClassifier
    from training.text_table import TextTable

    require_csv(output)
    classifier = TextClassifier.load(folder, model=model)
    table = TextTable.read(file, ItemTemplate(classifier.text))
    rows = [row for row, text in enumerate(table.texts) if text]
    with progress_bar(f"Encoding {len(rows):,} texts") as update:
        probabilities = classifier.probabilities(
            [table.texts[row] for row in rows], dtype=fast_dtype(), progress=update
        )
    name, classes = classifier.label_column, classifier.head.classes
    columns: dict[str, list[Any]] = {
        f"predicted_{name}": [classes[one] for one in probabilities.argmax(axis=1).tolist()],
        f"predicted_{name}_probability": probabilities.max(axis=1).astype(float).round(6).tolist(),
    }
    if class_probabilities:
        by_class = probabilities.T.astype(float).round(6).tolist()
        columns |= {f"probability_{one}": p for one, p in zip(classes, by_class, strict=True)}
    write_predictions(output, table.table, rows, columns)
    facts: dict[str, Any] = {
        "output": str(output),
        "rows": len(rows),
        "rows_without_text": len(table.texts) - len(rows),
    }
    if name in table.table.column_names:
        labels = table.column(name)
        facts["measures"], facts["measured_rows"] = classifier.measure(
            [labels[row] for row in rows], probabilities
        )

    def report() -> str:
        lines = [f"{len(rows):,} texts sorted, written to {output}"]
        if facts["rows_without_text"]:
            lines.append(f"rows without text, and so without class: {facts['rows_without_text']:,}")
        if facts.get("measures"):
            lines.append(f"{facts['measured_rows']:,} labelled: {measures_line(facts['measures'])}")
        return "\n".join(lines)

    emit(facts, as_json, report)

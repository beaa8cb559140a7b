"""Few-shot heads on real data: classes of reviews, and click probabilities of product search.

Reviews: a few examples of each class are drawn, all other reviews are the test. Beside the heads on
the towers' vectors stands logistic regression on the words (TF-IDF). Clicks: the judged pairs of a
few training queries, grade 1 or more as a click; the test are the validation queries.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from reporting import HOMEDEPOT_TEXT, arguments, homedepot, report
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

from towers import DEFAULT_PRESET, ItemTemplate, Retriever, TextSettings
from towers.cli.lexical import lexical_scorer
from towers.encoding import fast_dtype
from training.heads.click_head import PairFeatures, fit_click_head
from training.heads.click_model import both_classes
from training.heads.click_pairs import ClickPairs
from training.heads.labelled_texts import LabelledTexts
from training.heads.logistic import STRENGTHS
from training.heads.measures import Repeated, measure
from training.heads.score_features import score_features
from training.heads.text_classifier import METHODS, fit_class_head
from training.heads.text_vectors import TextVectors
from training.text_table import TextTable

LABELS = {"class": "class", "department": "department", "sentiment": "recommended"}
LEXICAL_WEIGHT = 0.6
MEASURES = ("accuracy", "macro_f1", "auc", "log_loss", "ece")


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shots", type=int, nargs="+", default=[8, 32, 128], help="of each class")
    parser.add_argument("--queries", type=int, nargs="+", default=[32, 100, 300, 1000])
    parser.add_argument("--vectors", type=Path, help="folder to keep vectors in")
    parser.add_argument("--only", choices=["classes", "clicks"])
    options = parser.parse_args()
    if options.only != "clicks":
        report(
            "heads-classes",
            f"Classes of clothing reviews, {options.seeds} seeds, mean ± 95% interval",
            list(_classes(options)),
            seeds=options.seeds,
        )
    if options.only != "classes":
        report(
            "heads-clicks",
            f"Clicks on homedepot, {options.seeds} seeds, mean ± 95% interval",
            list(_clicks(options)),
            seeds=options.seeds,
        )


def _classes(options: Any) -> Iterator[dict[str, Any]]:
    table = TextTable.read(
        options.data / "clothing_reviews" / "reviews.csv.gz", ItemTemplate("{review}")
    )
    texts = sorted({text for text in table.texts if text})
    row_of = {text: row for row, text in enumerate(texts)}
    tower = TextVectors.load(DEFAULT_PRESET)
    vectors = _kept(options, "reviews", lambda: tower.encode(texts, dtype=fast_dtype()))
    words = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=2).fit_transform(texts)

    def by_words(shots: np.ndarray, label: np.ndarray, test: np.ndarray) -> np.ndarray:
        grid = {"C": STRENGTHS[::2]}
        model = GridSearchCV(LogisticRegression(max_iter=1000), grid, scoring="neg_log_loss", cv=3)
        with threadpool_limits(1, user_api="blas"):
            return model.fit(words[shots], label).predict_proba(words[test])

    for name, column in LABELS.items():
        for shots in options.shots:
            found: dict[str, list[dict[str, float]]] = {}
            if name == "class" and shots > 64:
                continue  # the rarest class has 119 reviews
            for seed in range(options.seeds):
                # Two classes have one and two reviews.
                labelled = LabelledTexts.of(table, column, min_rows=64, seed=seed)
                rows = np.array([row_of[text] for text in labelled.texts])
                drawn = labelled.draw(shots)
                test = np.setdiff1d(np.arange(len(rows)), drawn)
                label = labelled.label
                predicted: dict[str, np.ndarray] = {
                    method: fit_class_head(
                        method, vectors[rows[drawn]], label[drawn], labelled.classes, seed=seed
                    ).probabilities(vectors[rows[test]])
                    for method in METHODS
                }
                predicted["words"] = by_words(rows[drawn], label[drawn], rows[test])
                for head, probabilities in predicted.items():
                    found.setdefault(head, []).append(measure(probabilities, label[test]))
            for head, values in found.items():
                facts = {"label": name, "shots per class": shots, "head": head}
                yield _noted({**facts, **_summary(values)})


def _clicks(options: Any) -> Iterator[dict[str, Any]]:
    catalog, texts = homedepot(options.data)
    towers = Retriever.from_preset(text=TextSettings(HOMEDEPOT_TEXT.pattern, 32, 64))
    items = _kept(options, "homedepot", lambda: towers.encode_items(texts, dtype=fast_dtype()))
    lexical = lexical_scorer(HOMEDEPOT_TEXT, catalog)

    def known(split: str) -> tuple[ClickPairs, dict[str, np.ndarray], np.ndarray]:
        pairs = ClickPairs.read(options.data / "homedepot" / f"{split}.csv.gz", catalog)
        scores = score_features(
            pairs.queries,
            towers.encode_queries(pairs.queries),
            items,
            pairs.query_row,
            pairs.item_row,
            lexical=lexical,
            lexical_weight=LEXICAL_WEIGHT,
        )
        return pairs, scores, pairs.require_clicks("grade")

    train, train_scores, train_clicked = known("train")
    _, valid_scores, valid_clicked = known("valid")
    label = valid_clicked.astype(np.int64)
    constant = np.full(len(label), train_clicked.mean())
    rate = [measure(both_classes(constant), label)]
    yield {"queries": "all", "pairs": len(train), "features": "none", **_summary(rate)}
    for names in (("cosine",), ("cosine", "lexical", "gap")):
        for count in [*options.queries, len(train.queries)]:
            values, sizes = [], []
            for seed in range(options.seeds if count < len(train.queries) else 1):
                queries = np.random.default_rng(seed).permutation(len(train.queries))[:count]
                rows = np.flatnonzero(np.isin(train.query_row, queries))
                head = fit_click_head(
                    PairFeatures({name: train_scores[name][rows] for name in names}),
                    train_clicked[rows],
                    train.query_row[rows],
                    seed=seed,
                )
                features = PairFeatures({name: valid_scores[name] for name in names})
                values.append(measure(both_classes(head.probabilities(features)), label))
                sizes.append(len(rows))
            facts = {"queries": count, "pairs": round(np.mean(sizes)), "features": ", ".join(names)}
            yield _noted({**facts, **_summary(values)})


def _noted(row: dict[str, Any]) -> dict[str, Any]:
    print(row, file=sys.stderr, flush=True)
    return row


def _summary(values: list[dict[str, float]]) -> dict[str, str]:
    """Each measure as mean ± half the 95% interval."""
    shown = {}
    for name in MEASURES:
        found = Repeated.of([one[name] for one in values])
        spread = "" if found.interval_95 is None else f" ± {found.interval_95[1] - found.mean:.3f}"
        shown[name] = f"{found.mean:.3f}{spread}"
    return shown


def _kept(options: Any, name: str, encode: Any) -> np.ndarray:
    """Vectors from the folder where they are there."""
    if options.vectors is None:
        return encode()
    path = options.vectors / f"{name}.npy"
    if not path.exists():
        options.vectors.mkdir(parents=True, exist_ok=True)
        np.save(path, encode())
    return np.load(path).astype(np.float32)


if __name__ == "__main__":
    main()

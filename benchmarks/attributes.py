"""What attributes beside the text are worth: an ablation with frozen towers, words left out.

- `shop`: the sample shop, whose prices, brands and categories were made up with its queries.
- `esci`: brand and colour of real products. The plain text has both as words already; the bare text
  is the title alone.
- `clothing`: a customer's words about a piece of clothing, and the piece. Items have no text but
  their class. Attributes are department, mean age and rating of other reviewers, and the mean
  vector of three other reviews, as an image's embedding would be given.

Strengths, and whether to fuse at all, are chosen on held-out queries among the shots; the test
queries are looked at last. `gain` is fused less text on the same test queries, averaged over draws,
with a 95% interval over queries; `taken` is how many of the draws `towers train` would have fused,
and `gain, if taken` the gain with the text alone where it would have refused.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
from reporting import arguments, esci, judgements, report

from towers import ItemTemplate, Retriever, TextSettings, learn_attributes
from towers.attribute_fusion import AttributeFusion
from towers.encoding import fast_dtype
from towers.item_text import text_of
from training.catalog import Catalog
from training.config import FitConfig
from training.evaluation import evaluate
from training.fusion import choose_fusion
from training.interactions import Interactions
from training.search import Run, top_k
from training.shots import draw_shots
from training.train import render_items

MEASURE = "nDCG@10"
SHOP = Path(__file__).parent.parent / "examples" / "shop"
_OTHER_REVIEWS = 3
_TEST_REVIEWS = 1000
_TRAIN_REVIEWS = 1000


@dataclass(frozen=True)
class Task:
    """A catalogue with judged queries and the ablation's templates."""

    catalog: Catalog
    train: Interactions
    test: Interactions
    templates: dict[str, str]
    gains: dict[int, float] | None = None
    min_grade: int = 1


class KeptVectors(Retriever):
    """A retriever that encodes each text once, and keeps the vectors in a file."""

    def keep(self, path: Path, queries: Sequence[str], texts: Sequence[str]) -> None:
        """Makes or reads the vectors of all that will be asked for."""
        names = {"query": sorted(set(queries)), "item": sorted(set(texts))}
        kept: dict[str, dict[str, np.ndarray]] = {"query": {}, "item": {}}
        if path.is_file():
            old = np.load(path, allow_pickle=False)
            kept = {
                kind: dict(zip(old[f"{kind}_names"].tolist(), old[f"{kind}_vectors"], strict=True))
                for kind in names
            }
        for kind, wanted in names.items():
            new = [text for text in wanted if text not in kept[kind]]
            if new:
                encode = super().encode_queries if kind == "query" else super().encode_items
                kept[kind] |= dict(zip(new, encode(new, dtype=fast_dtype()), strict=True))
        arrays = {f"{kind}_names": np.array(list(of)) for kind, of in kept.items()}
        arrays |= {f"{kind}_vectors": np.stack(list(of.values())) for kind, of in kept.items()}
        np.savez(path, allow_pickle=False, **arrays)
        self.kept = kept

    def encode_queries(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        """Vectors that were kept."""
        return np.stack([self.kept["query"][text] for text in texts])

    def encode_items(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        """Vectors of texts alone that were kept."""
        return np.stack([self.kept["item"][text_of(text)] for text in texts])


def shop(data: Path, folder: Path) -> Task:
    """The sample shop."""
    catalog = Catalog.read(SHOP / "catalog.csv")
    text = "{title}[ {brand}][ {description}]"
    return Task(
        catalog,
        Interactions.read(SHOP / "train.csv", catalog),
        Interactions.read(SHOP / "test.csv", catalog),
        {
            "price": text + "{price:number}",
            "brand": text + "{brand:category}",
            "category": text + "{category:category}",
            "brand, category": text + "{brand:category}{category:category}",
            "all": text + "{price:number}{brand:category}{category:category}",
        },
    )


def esci_task(data: Path, folder: Path) -> Task:
    """Amazon's products: brand and colour."""
    catalog = esci(data)[0]
    bare, plain = "{title}", "{title}[ {brand}][ {color}]"
    both = "{brand:category}{color:category}"
    return Task(
        catalog,
        judgements(data, "esci", "train", catalog),
        judgements(data, "esci", "test", catalog),
        {
            "brand, color": plain + both,
            "bare title: brand, color": bare + both,
        },
        {0: 0.0, 1: 1.0, 2: 10.0, 3: 100.0},
        3,
    )


def clothing(data: Path, folder: Path) -> Task:
    """Reviews that look for their item; what is known of an item is from other reviews."""
    table = pyarrow.csv.read_csv(data / "clothing_reviews" / "reviews.csv.gz").to_pandas()
    table = table[table["review"].fillna("").str.len() > 0]
    table = table.drop_duplicates("review").sample(frac=1.0, random_state=0)
    place = table.groupby("item_id").cumcount()
    known, asked = table[place < _OTHER_REVIEWS], table[place >= _OTHER_REVIEWS]
    test, train = asked[:_TEST_REVIEWS], asked[_TEST_REVIEWS:][:_TRAIN_REVIEWS]
    encoder = KeptVectors.from_preset(text=TextSettings(query_max_length=64))
    encoder.keep(folder / "clothing-known.npz", known["review"].tolist(), ["none"])
    lines = []
    for item_id, rows in known.groupby("item_id"):
        first = rows.iloc[0]
        lines.append(
            {
                "item_id": str(item_id),
                "title": str(first["class"] or "clothing"),
                "department": str(first["department"] or ""),
                "age": str(rows["age"].mean()),
                "rating": str(rows["rating"].mean()),
                "image_embedding": encoder.encode_queries(rows["review"].tolist())
                .mean(axis=0)
                .tolist(),
            }
        )
    path = folder / "clothing.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    catalog = Catalog.read(path)

    def pairs(name: str, part: Any) -> Interactions:
        file = folder / f"clothing-{name}.jsonl"
        rows = zip(part["review"], part["item_id"], strict=True)
        file.write_text(
            "".join(json.dumps({"query": q, "item_id": str(i)}) + "\n" for q, i in rows), "utf-8"
        )
        return Interactions.read(file, catalog)

    text = "{title}"
    return Task(
        catalog,
        pairs("train", train),
        pairs("test", test),
        {
            "department": text + "{department:category}",
            "age, rating": text + "{age:number}{rating:number}",
            "given vector": text + "{image_embedding:vector}",
            "all": text
            + "{department:category}{age:number}{rating:number}{image_embedding:vector}",
        },
    )


TASKS = {"shop": shop, "esci": esci_task, "clothing": clothing}


def main() -> None:
    """Runs the ablation."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--dataset", choices=list(TASKS), default="shop")
    parser.add_argument("--shots", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="folder to keep vectors in")
    options = parser.parse_args()
    folder = options.cache or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    task = TASKS[options.dataset](options.data, folder)

    rows: list[dict[str, Any]] = []
    for name, pattern in task.templates.items():
        template = ItemTemplate(pattern)
        items = render_items(template, task.catalog)
        settings = TextSettings(pattern, query_max_length=64, item_max_length=64)
        retriever = KeptVectors.from_preset(text=settings)
        queries = [*task.train.queries, *task.test.queries]
        retriever.keep(folder / f"{options.dataset}.npz", queries, [text_of(x) for x in items])
        attributes = learn_attributes(template, items)
        for shots in options.shots:
            rows.append({"attributes": name, "shots": shots})
            rows[-1] |= _measured(task, retriever, attributes, items, shots, options.seeds)
            print(rows[-1], flush=True)
    report(
        f"attributes-{options.dataset}",
        f"{options.dataset}: what attributes add to frozen towers, {MEASURE}",
        rows,
        seeds=options.seeds,
    )


def _measured(
    task: Task,
    retriever: KeptVectors,
    attributes: Sequence[Any],
    items: Sequence[str],
    shots: int,
    seeds: int,
) -> dict[str, Any]:
    texts = retriever.encode_items(items)
    blank = AttributeFusion(attributes, retriever.embedding_dim)
    features = retriever.with_fusion(blank).read_attributes(items)
    assert features is not None
    text = _ndcg(task, retriever, texts)
    fused, kept, taken, spreads = [], [], 0, []
    for seed in range(seeds):
        pairs = draw_shots(task.train, shots, seed=seed, min_grade=task.min_grade)
        choice = choose_fusion(
            retriever, attributes, pairs, items, FitConfig(), seed=seed, refuse=False
        )
        assert choice.fusion is not None
        ndcg = _ndcg(task, retriever, np.asarray(choice.fusion(texts, features)))
        fused.append(ndcg)
        kept.append(ndcg if choice.helps else text)
        taken += choice.helps
        spreads.append(choice.spread)
    gain, of_kept = np.mean(fused, axis=0) - text, np.mean(kept, axis=0) - text
    return {
        "text": float(np.nanmean(text)),
        "fused": float(np.nanmean(fused)),
        "gain": _interval(gain),
        "taken": f"{taken} of {seeds}",
        "gain, if taken": _interval(of_kept),
        "spreads": ", ".join(f"{spread:g}" for spread in spreads),
    }


def _ndcg(task: Task, retriever: KeptVectors, items: np.ndarray) -> np.ndarray:
    scores, rows = top_k(retriever.encode_queries(task.test.queries), items, 10)
    run = Run(task.test.queries, rows, scores)
    result = evaluate(run, task.test, task.catalog, measures=[MEASURE], gains=task.gains)
    return result.per_query[MEASURE]


def _interval(gains: np.ndarray) -> str:
    known = gains[np.isfinite(gains)]
    error = known.std(ddof=1) / np.sqrt(len(known))
    return f"{known.mean():+.4f} ± {1.96 * error:.4f}"


if __name__ == "__main__":
    main()

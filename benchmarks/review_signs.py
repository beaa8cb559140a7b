"""Do dislikes help? Users made of clothing reviews, with their ratings read or passed over.

Nobody in the data wrote twice, so users are put together: each likes two items of one class (their
reviews of 4 or 5) and dislikes one item (a review of 1 or 2) of another class, of the same class,
or whatever comes. Items are the means of other people's reviews of them, there are no other texts.
What is recommended should be of the liked class, and be praised by yet other people.

Reviews are cut in three: those that make the items, and two sets of users. Variants were looked at
with --split dev; the results are those of --split test.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from reporting import arguments, report

from towers import Retriever
from towers.encoding import fast_dtype
from towers.item_text import ItemTemplate
from towers.review_sentiment import DISLIKE
from training.evaluation import bootstrap_interval
from training.heads.logistic import fit_logistic
from training.text_table import TextTable

MIN_REVIEWS = 12  # of an item
ITEM_SIDE, USER_SIDE = 12, 30  # reviews of an item, at most
LIKED, DISLIKED = 2, 1  # reviews of a user
LABELLED = 64  # reviews that the head for the tone of a review learns from
CUTOFF = 10
DISLIKES = ("another class", "the same class", "any")


@dataclass(frozen=True)
class Reviews:
    """Reviews with the vectors of their texts; `of` is the item of each."""

    vectors: np.ndarray
    of: np.ndarray
    rating: np.ndarray

    def some(self, rows: np.ndarray) -> Reviews:
        """The reviews of some rows."""
        return Reviews(self.vectors[rows], self.of[rows], self.rating[rows])


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(main.__doc__ or "")
    parser.add_argument("--users", type=int, default=2_000, help="of each kind")
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = list(_rows(options))
    name = "review_signs" if options.split == "test" else "review_signs-dev"
    report(
        name,
        f"Likes and dislikes, {options.users} users of each kind, split {options.split}",
        rows,
        seed=options.seed,
        liked=LIKED,
        disliked=DISLIKED,
    )


def _rows(options: Any) -> Iterator[dict[str, Any]]:
    reviews, class_of, splits = _read(options)
    items, users, others = (reviews.some(splits[name]) for name in _sides(options.split))
    count = len(class_of)
    vectors = _means(items.vectors, items.of, count)
    complaints = np.bincount(users.of, users.rating <= 2, count) / np.maximum(
        np.bincount(users.of, minlength=count), 1
    )
    tone = _tone(others, options.seed)
    draw = np.random.default_rng(options.seed + 1)
    centre = items.vectors.mean(axis=0)
    for kind in DISLIKES:
        cases = [_user(users, class_of, kind, draw) for _ in range(options.users)]
        found: dict[str, np.ndarray] = {}
        for name, weigh, middle in _variants(users, tone, centre, options.split):
            found[name] = np.array(
                [
                    _measured(
                        weigh(liked, disliked),
                        users.vectors[np.concatenate([liked, disliked])] - middle,
                        vectors,
                        np.concatenate([users.of[liked], users.of[disliked]]),
                        class_of == class_of[users.of[liked[0]]],
                        complaints,
                    )
                    for liked, disliked in cases
                ]
            )
        base = found["likes alone"]
        for name, values in found.items():
            row: dict[str, Any] = {"the disliked is of": kind, "score": name}
            for column, measure in enumerate((f"P@{CUTOFF}", f"complaints@{CUTOFF}")):
                row[measure] = _estimate(values[:, column])
                row[f"{measure} more"] = _estimate((values - base)[:, column])
            print(row, file=sys.stderr)
            yield row


def _read(options: Any) -> tuple[Reviews, np.ndarray, dict[str, np.ndarray]]:
    """Reviews of the items that have enough, the class of each item, and rows of each side."""
    path = options.data / "clothing_reviews" / "reviews.csv.gz"
    table = TextTable.read(path, ItemTemplate("{review}"))
    ids, classes = np.array(table.column("item_id")), np.array(table.column("class"))
    rating = pc.cast(table.table.column("rating").cast("string"), "float32").to_numpy()
    texts = np.array(table.texts)
    _, first = np.unique(texts, return_index=True)
    kept = np.array([row for row in np.sort(first) if texts[row] and classes[row] is not None])
    names, of, counts = np.unique(ids[kept], return_inverse=True, return_counts=True)
    known = np.flatnonzero(counts >= MIN_REVIEWS)
    place = np.full(len(names), -1)
    place[known] = np.arange(len(known))
    class_of = np.array([classes[kept[np.argmax(of == item)]] for item in known])
    draw = np.random.default_rng(options.seed)
    splits: dict[str, list[int]] = {"items": [], "dev": [], "test": []}
    for item in known:
        rows = draw.permutation(np.flatnonzero(of == item))
        half = min(len(rows) // 2, ITEM_SIDE)
        splits["items"].extend(rows[:half])
        rest = rows[half : half + USER_SIDE]
        splits["dev"].extend(rest[::2])
        splits["test"].extend(rest[1::2])
    used = np.sort(np.concatenate([np.array(rows) for rows in splits.values()]))
    print(f"{len(known)} items, {len(used)} reviews", file=sys.stderr)
    towers = Retriever.from_preset()
    vectors = np.zeros((len(kept), towers.embedding_dim), np.float32)
    vectors[used] = towers.encode_reviews(texts[kept[used]].tolist(), dtype=fast_dtype())
    reviews = Reviews(vectors, place[of], rating[kept])
    return reviews, class_of, {name: np.array(rows) for name, rows in splits.items()}


def _sides(split: str) -> tuple[str, str, str]:
    """Reviews that make items, that make users, and that the tone is learned from."""
    return "items", split, "test" if split == "dev" else "dev"


def _means(vectors: np.ndarray, of: np.ndarray, count: int) -> np.ndarray:
    sums = np.zeros((count, vectors.shape[1]))
    np.add.at(sums, of, vectors)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def _tone(reviews: Reviews, seed: int) -> Any:
    """Sentiments of vectors, by a head that has seen a few rated reviews of other people."""
    clear = np.flatnonzero(reviews.rating != 3)
    rows = np.random.default_rng(seed).permutation(clear)[:LABELLED]
    head = fit_logistic(
        reviews.vectors[rows], (reviews.rating[rows] > 3).astype(int), ("complaint", "praise")
    )
    return lambda vectors: head.probabilities(vectors) @ [-1.0, 1.0]


def _user(
    reviews: Reviews, class_of: np.ndarray, kind: str, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the reviews of a user: liked ones of several items of a class, and disliked ones."""
    classes = class_of[reviews.of]
    praise, complaint = reviews.rating >= 4, reviews.rating <= 2
    while True:
        liked = [draw.choice(np.flatnonzero(praise))]
        own = classes == classes[liked[0]]
        while len(liked) < LIKED:
            rest = np.flatnonzero(praise & own & ~np.isin(reviews.of, reviews.of[liked]))
            if not len(rest):
                break
            liked.append(draw.choice(rest))
        fits = {"another class": ~own, "the same class": own, "any": np.ones_like(own)}[kind]
        rest = np.flatnonzero(complaint & fits & ~np.isin(reviews.of, reviews.of[liked]))
        if len(liked) == LIKED and len(rest) >= DISLIKED:
            return np.array(liked), draw.choice(rest, DISLIKED, replace=False)


def _variants(reviews: Reviews, tone: Any, centre: np.ndarray, split: str) -> Iterator[Any]:
    """Name, sentiments of a user's liked and disliked reviews, and what is taken from vectors."""

    def stars(liked: np.ndarray, disliked: np.ndarray, dislike: float = 1.0) -> np.ndarray:
        of_liked = (reviews.rating[liked] - 3) / 2
        return np.concatenate([of_liked, dislike * (reviews.rating[disliked] - 3) / 2])

    def predicted(liked: np.ndarray, disliked: np.ndarray) -> np.ndarray:
        sentiment = tone(reviews.vectors[np.concatenate([liked, disliked])])
        return np.where(sentiment < 0, DISLIKE * sentiment, sentiment)

    yield "likes alone", lambda a, b: stars(a, b, 0.0), 0.0
    yield "ratings passed over", lambda a, b: np.ones(len(a) + len(b)), 0.0
    yield "likes and dislikes", lambda a, b: stars(a, b, DISLIKE), 0.0
    yield f"the same, tone predicted ({LABELLED} ratings)", predicted, 0.0
    yield "likes and whole dislikes", stars, 0.0
    if split == "dev":
        yield "dislikes by half", lambda a, b: stars(a, b, 0.5), 0.0
        yield "likes alone, centred", lambda a, b: stars(a, b, 0.0), centre
        yield "likes and dislikes, centred", stars, centre


def _measured(
    sentiment: np.ndarray,
    written: np.ndarray,
    items: np.ndarray,
    known: np.ndarray,
    wanted: np.ndarray,
    complaints: np.ndarray,
) -> tuple[float, float]:
    """Share of the wanted class among the best items, and how often others complain of them."""
    scores = items @ (sentiment @ written)
    scores[known] = -np.inf
    best = np.argsort(-scores, kind="stable")[:CUTOFF]
    return float(wanted[best].mean()), float(complaints[best].mean())


def _estimate(values: np.ndarray) -> str:
    low, high = bootstrap_interval(values)
    return f"{values.mean():.4f} [{low:.4f}, {high:.4f}]"


if __name__ == "__main__":
    main()

"""A readable summary of a user: what stands out in what was taken, and the words of reviews."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from towers.errors import InputError
from training.catalog import Catalog
from training.histories import Histories
from training.profile.evidence import log_odds, shrunk_lift
from training.profile.quotation import quotation
from training.profile.stems import words_with_stems
from training.reviews import Reviews

Background = Literal["catalog", "users"]
TITLE_WORDS = "title words"
"""The trait that is made of the words of titles."""

USUAL_TRAITS = ("category", "brand")
USUAL_NUMBERS = ("price",)
"""Columns that are looked at unless others are named."""

_PRIOR_REVIEWS = 10  # average reviews that the prior of the words weighs as much as
_NEWEST = 5
_NEUTRAL, _HALF_RANGE = 3.0, 2.0  # of ratings from 1 to 5


@dataclass(frozen=True)
class Trait:
    """A value that items taken by the user have in common.

    Attributes:
        value: of the column.
        items: how many of the user's items have it.
        of_items: how many of them have any value.
        background_share: share of the background's items that have it.
        lift: how many times as often as in the background, shrunk (`shrunk_lift`).
        lift_low: what the lift is above with a probability of 95%.
        titles: of the user's items that have it, newest first, three at most.
    """

    value: str
    items: int
    of_items: int
    background_share: float
    lift: float
    lift_low: float
    titles: list[str] = field(repr=False)

    @property
    def stands_out(self) -> bool:
        """Whether it is more than chance: the lift is above 1 with a probability of 95%."""
        return self.lift_low > 1.0


@dataclass(frozen=True)
class NumberBand:
    """Quartiles of a number of the user's items, beside those of the catalogue.

    Attributes:
        items: how many of the user's items have the number.
        low, median, high: quartiles over these; None where there are none.
        catalog_low, catalog_median, catalog_high: over the catalogue.
        not_numbers: values in the catalogue that are no number.
    """

    items: int
    low: float | None
    median: float | None
    high: float | None
    catalog_low: float | None
    catalog_median: float | None
    catalog_high: float | None
    not_numbers: int


@dataclass(frozen=True)
class Quotation:
    """Where a word was written.

    Attributes:
        text: the sentence around it.
        rating: from 1 to 5.
        item_id: of the item reviewed; None where the catalogue lacks it.
        title: of the item.
    """

    text: str
    rating: float
    item_id: str | None
    title: str | None


@dataclass(frozen=True)
class Term:
    """A word of a user's reviews.

    Attributes:
        word: as the user wrote it most often; inflections count together.
        z: evidence that it belongs to the liked (above 0) or the disliked: see `log_odds`.
        reviews: how many rated reviews of the user it is in.
        quotations: two at most, of those whose ratings speak the same way as `z`.
    """

    word: str
    z: float
    reviews: int
    quotations: list[Quotation] = field(repr=False)


@dataclass(frozen=True)
class UserProfile:
    """What the data say of a user.

    Attributes:
        user: the id; None for a history that was given.
        events: items of the history, repeats counted.
        unknown_items: ids of a given history that the catalogue lacks.
        items: distinct items of history and reviews: what all traits and numbers are of.
        newest: titles of the last items of the history, newest first.
        first, last: times of the first and last event, ISO 8601; None where the data has none.
        traits: by column, and by `TITLE_WORDS`: what stands out most comes first.
        numbers: by column.
        reviews: number of reviews; `unrated` of them have no rating and only count as reviewed
            items, `neutral` are rated 3 and weigh nothing.
        liked, disliked: words, the surest first.
    """

    user: str | None
    events: int
    unknown_items: int
    items: int
    newest: list[str]
    first: str | None
    last: str | None
    traits: dict[str, list[Trait]]
    numbers: dict[str, NumberBand]
    reviews: int
    unrated: int
    neutral: int
    liked: list[Term]
    disliked: list[Term]

    def as_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        facts = asdict(self)
        for name, traits in self.traits.items():
            for trait, of in zip(traits, facts["traits"][name], strict=True):
                of["stands_out"] = trait.stands_out
        return facts


class UserProfiles:
    """Profiles of users, from a catalogue and histories, reviews or both.

    Args:
        catalog: the items.
        histories: what users took.
        reviews: what users wrote; an item that a user wrote of counts as taken.
        categorical: columns whose values are counted; category and brand, as far as they are there,
            if None.
        numeric: columns of numbers; the price, if it is there, if None.
        against: what a user's items are compared with: all items of the catalogue, or all that
            other users took.
        top: traits of a column and words of a side, at most.

    Raises:
        InputError: the catalogue lacks a column, neither histories nor reviews of others are there
            to compare with, or histories and reviews are of different catalogues.

    Example:
        >>> catalog = Catalog.read("examples/shop/catalog.csv")
        >>> histories = Histories.read("examples/shop/histories.jsonl", catalog)
        >>> UserProfiles(catalog, histories).of("u001").traits["category"][0].value
        'Kitchen > Bakeware'
    """

    def __init__(
        self,
        catalog: Catalog,
        histories: Histories | None = None,
        reviews: Reviews | None = None,
        *,
        categorical: Sequence[str] | None = None,
        numeric: Sequence[str] | None = None,
        against: Background = "catalog",
        top: int = 5,
    ) -> None:
        for data in (histories, reviews):
            if data is not None and data.catalog is not catalog:
                raise InputError(f"{data.path} was read with another catalogue")
        self.catalog, self.histories, self.reviews = catalog, histories, reviews
        self.top = top
        there = catalog.table.column_names
        if categorical is None:
            categorical = [name for name in USUAL_TRAITS if name in there]
        if numeric is None:
            numeric = [name for name in USUAL_NUMBERS if name in there]
        self._titles = [title or "" for title in catalog.column("title")]
        self._numbers = {name: _numbers(catalog.column(name)) for name in numeric}
        self._traits = {name: _Values.of_column(catalog.column(name)) for name in categorical}
        self._traits[TITLE_WORDS] = _Values.of_words(self._titles)

        users = [] if histories is None else list(histories.users)
        if reviews is not None:
            users += [user for user in reviews.users if user is not None]
        self.users = list(dict.fromkeys(users))
        """All users, in the order of the histories, then of the reviews."""
        known = [] if histories is None else histories.users
        self._history_of = {user: row for row, user in enumerate(known)}
        self._reviews_of: dict[str, list[int]] = {}
        if reviews is not None:
            for row, user in enumerate(reviews.users):
                if user is not None:
                    self._reviews_of.setdefault(user, []).append(row)
        if against == "users" and len(self.users) < 2:
            raise InputError("there are no other users to compare with: compare with the catalogue")
        self._against_users = against == "users"
        weights = self._count_taken() if self._against_users else np.ones(len(catalog), np.int64)
        self._background = {
            name: (values.matrix.T @ weights, int(weights[values.given].sum()))
            for name, values in self._traits.items()
        }

    def of(self, user: str) -> UserProfile:
        """The profile of a user; one of nothing for a user that the data do not know."""
        events, when = self._events(user)
        return self._profile(user, events, when, self._reviews_of.get(user, []), 0)

    def of_items(self, item_ids: Sequence[str]) -> UserProfile:
        """The profile of a history, oldest first; ids that the catalogue lacks are counted."""
        rows = self.catalog.row_of(list(item_ids))
        unknown = int((rows < 0).sum())
        return self._profile(None, rows[rows >= 0], None, [], unknown)

    def _events(self, user: str) -> tuple[np.ndarray, np.ndarray | None]:
        if self.histories is None or user not in self._history_of:
            return np.zeros(0, np.int64), None
        place = self._history_of[user]
        part = slice(self.histories.offsets[place], self.histories.offsets[place + 1])
        when = self.histories.timestamp
        return self.histories.item_row[part], None if when is None else when[part]

    def _items(self, events: np.ndarray, written: Sequence[int]) -> np.ndarray:
        """Distinct rows, the newest first; those of reviews alone come last."""
        rows = [*events[::-1].tolist()]
        if self.reviews is not None:
            rows += [row for row in self.reviews.item_row[list(written)].tolist() if row >= 0]
        return np.array(list(dict.fromkeys(rows)), np.int64)

    def _count_taken(self) -> np.ndarray:
        """How many users have taken each item, int64 `[items]`."""
        counts = np.zeros(len(self.catalog), np.int64)
        for user in self.users:
            counts[self._items(self._events(user)[0], self._reviews_of.get(user, []))] += 1
        return counts

    def _profile(
        self,
        user: str | None,
        events: np.ndarray,
        when: np.ndarray | None,
        written: list[int],
        unknown: int,
    ) -> UserProfile:
        items = self._items(events, written)
        own = self._against_users and user is not None
        rated = [] if self.reviews is None else self.reviews.rating[written].tolist()
        liked, disliked = self._terms(written)
        newest = dict.fromkeys(events[::-1].tolist())
        times = [] if when is None else [str(time) for time in when[[0, -1]]] if len(when) else []
        return UserProfile(
            user=user,
            events=len(events),
            unknown_items=unknown,
            items=len(items),
            newest=[self._titles[row] for row in list(newest)[:_NEWEST]],
            first=times[0] if times else None,
            last=times[-1] if times else None,
            traits={name: self._standing_out(name, items, own) for name in self._traits},
            numbers={
                name: _band(values, bad, items) for name, (values, bad) in self._numbers.items()
            },
            reviews=len(written),
            unrated=sum(math.isnan(rating) for rating in rated),
            neutral=sum(rating == _NEUTRAL for rating in rated),
            liked=liked,
            disliked=disliked,
        )

    def _standing_out(self, name: str, items: np.ndarray, own: bool) -> list[Trait]:
        """What some items have in common.

        Args:
            name: of the trait.
            items: distinct rows.
            own: whether these items are counted in the background, which is that of the others.
        """
        values = self._traits[name]
        has = values.matrix[items]  # [taken, values]
        counts = np.asarray(has.sum(axis=0)).ravel()
        of_items = int(values.given[items].sum())
        at = np.flatnonzero(counts)
        of_all, total = self._background[name]
        share = (of_all[at] - own * counts[at]) / max(total - own * of_items, 1)
        lift, low = shrunk_lift(counts[at], of_items * share)
        order = np.lexsort((at, -counts[at], -low))[: self.top]
        traits = []
        for place in order.tolist():
            column = has[:, at[place]].toarray().ravel()
            rows = items[np.flatnonzero(column)]
            traits.append(
                Trait(
                    value=values.names[at[place]],
                    items=int(counts[at[place]]),
                    of_items=of_items,
                    background_share=float(share[place]),
                    lift=float(lift[place]),
                    lift_low=float(low[place]),
                    titles=[self._titles[row] for row in rows[:3].tolist()],
                )
            )
        return traits

    @cached_property
    def _words(self) -> list[dict[str, list[str]]]:
        """Of each review its stems, each with the words that led to it."""
        found = []
        for text in self.reviews.texts if self.reviews else []:
            words: dict[str, list[str]] = {}
            for word, stem in words_with_stems(text):
                words.setdefault(stem, []).append(word)
            found.append(words)
        return found

    @cached_property
    def _reviews_with(self) -> Counter[str]:
        """In how many reviews each stem is."""
        return Counter(stem for words in self._words for stem in words)

    def _terms(self, written: list[int]) -> tuple[list[Term], list[Term]]:
        """Words of the liked and of the disliked among some reviews."""
        reviews = self.reviews
        if reviews is None:
            return [], []
        tone = {row: (float(reviews.rating[row]) - _NEUTRAL) / _HALF_RANGE for row in written}
        telling = [row for row in written if tone[row] == tone[row] and tone[row] != 0.0]
        stems = list(dict.fromkeys(stem for row in telling for stem in self._words[row]))
        if not stems:
            return [], []
        sides = np.zeros((2, len(stems)))  # liked, disliked
        for row in telling:
            has = [stem in self._words[row] for stem in stems]
            sides[int(tone[row] < 0)] += abs(tone[row]) * np.array(has)
        scale = _PRIOR_REVIEWS / len(reviews)
        prior = scale * np.array([self._reviews_with[stem] for stem in stems])
        z = log_odds(sides[0], sides[1], prior, scale * self._reviews_with.total())

        def terms(sign: int) -> list[Term]:
            # With few reviews, z of a word can have a sign that none of them has.
            of_sign = [
                place
                for place in range(len(stems))
                if sign * z[place] > 0 and sides[int(sign < 0), place]
            ]
            of_sign.sort(key=lambda place: -abs(z[place]))  # stable: the first written comes first
            chosen = []
            for place in of_sign[: self.top]:
                rows = [row for row in telling if stems[place] in self._words[row]]
                agreeing = [row for row in rows if sign * tone[row] > 0]
                agreeing.sort(key=lambda row: -abs(tone[row]))
                chosen.append(self._term(stems[place], float(z[place]), rows, agreeing))
            return chosen

        return terms(1), terms(-1)

    def _term(self, stem: str, z: float, rows: list[int], agreeing: list[int]) -> Term:
        words = Counter(word for row in rows for word in self._words[row][stem])
        return Term(
            word=words.most_common(1)[0][0],
            z=z,
            reviews=len(rows),
            quotations=[self._quotation(row, stem) for row in agreeing[:2]],
        )

    def _quotation(self, row: int, stem: str) -> Quotation:
        assert self.reviews is not None
        item = int(self.reviews.item_row[row])
        return Quotation(
            text=quotation(self.reviews.texts[row], stem),
            rating=float(self.reviews.rating[row]),
            item_id=self.catalog.item_ids[item] if item >= 0 else None,
            title=self._titles[item] if item >= 0 else None,
        )


@dataclass(frozen=True)
class _Values:
    """Which items have which values.

    Attributes:
        matrix: int64 `[items, values]`, 1 or 0.
        names: of the values.
    """

    matrix: sp.csr_matrix
    names: list[str]

    @cached_property
    def given(self) -> np.ndarray:
        """Whether an item has any value, bool `[items]`."""
        return self.matrix.getnnz(axis=1) > 0

    @classmethod
    def of_column(cls, column: Sequence[str | None]) -> _Values:
        return cls._of([[] if value is None else [(value, value)] for value in column])

    @classmethod
    def of_words(cls, texts: Iterable[str]) -> _Values:
        return cls._of([list(words_with_stems(text)) for text in texts])

    @classmethod
    def _of(cls, rows: Sequence[Sequence[tuple[str, str]]]) -> _Values:
        """Of each item its values, each as it is written and as what it counts."""
        written: dict[str, Counter[str]] = {}
        for row in rows:
            for word, value in row:
                written.setdefault(value, Counter())[word] += 1
        ids = {value: place for place, value in enumerate(written)}
        distinct = [sorted({ids[value] for _, value in row}) for row in rows]
        ends = np.cumsum([0, *map(len, distinct)])
        columns = np.array([place for row in distinct for place in row], np.int64)
        matrix = sp.csr_matrix(
            (np.ones(len(columns), np.int64), columns, ends), shape=(len(rows), len(ids))
        )
        return cls(matrix, [words.most_common(1)[0][0] for words in written.values()])


def _numbers(column: Sequence[str | None]) -> tuple[np.ndarray, int]:
    """A column as float64 `[items]`, NaN for none, and how many values are no numbers."""
    values, bad = np.full(len(column), np.nan), 0
    for row, text in enumerate(column):
        if text is None:
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value):
            values[row] = value
        else:
            bad += 1
    return values, bad


def _band(values: np.ndarray, bad: int, items: np.ndarray) -> NumberBand:
    own = values[items]
    own = own[~np.isnan(own)]
    return NumberBand(len(own), *_quartiles(own), *_quartiles(values[~np.isnan(values)]), bad)


def _quartiles(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    if not len(values):
        return None, None, None
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return low, median, high

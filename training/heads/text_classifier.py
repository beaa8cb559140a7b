"""A class head with all that is needed to feed it text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from towers.encoding import Progress
from towers.errors import InputError
from training.heads.class_head import ClassHead
from training.heads.cross_validation import Predictor, Quality, cross_validate
from training.heads.head_folder import damaged, read_head, write_head
from training.heads.labelled_texts import LabelledTexts
from training.heads.logistic import fit_logistic
from training.heads.measures import measure
from training.heads.prototype import fit_prototype
from training.heads.text_vectors import TextVectors

Method = Literal["prototype", "linear"]
METHODS: tuple[Method, ...] = get_args(Method)

StageProgress = Callable[[str, int, int], None]
"""Called with (stage, done, in all)."""

_KIND = "classes"


@dataclass(frozen=True)
class TextClassifier:
    """A head and the tower in front of it.

    Attributes:
        head: the head.
        method: how it was fitted.
        text: template of the texts; see `towers.ItemTemplate`.
        label_column: column of the class names in the file it was fitted on.
        vectors: the tower.
    """

    head: ClassHead
    method: Method
    text: str
    label_column: str
    vectors: TextVectors

    def probabilities(
        self, texts: Sequence[str], *, dtype: str | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """Class probabilities of texts, float32 ``[len(texts), C]``."""
        vectors = self.vectors.encode(texts, dtype=dtype, progress=progress)
        return self.head.probabilities(vectors)

    def measure(
        self, labels: Sequence[str | None], probabilities: np.ndarray
    ) -> tuple[dict[str, float], int]:
        """Measures predictions where the class is known.

        Args:
            labels: class names, ``N`` of them; None, or a name that is no class of the head, does
                not count.
            probabilities: ``[N, C]``.

        Returns:
            See `training.heads.measures.measure`, empty where no row counts; and the number of
            rows that do.
        """
        number = {name: n for n, name in enumerate(self.head.classes)}
        label = np.array([number.get(name or "", -1) for name in labels], np.int64)
        known = label >= 0
        count = int(known.sum())
        return (measure(probabilities[known], label[known]) if count else {}), count

    def save(self, folder: Path) -> None:
        """Writes the head. The tower is not copied: its name and fingerprint are kept."""
        settings = {
            "method": self.method,
            "classes": self.head.classes,
            "text": self.text,
            "label_column": self.label_column,
            "model": self.vectors.model,
            "tower": self.vectors.tower,
            "max_length": self.vectors.max_length,
            "fingerprint": self.vectors.fingerprint(),
        }
        write_head(folder, _KIND, settings, {"kernel": self.head.kernel, "bias": self.head.bias})

    @classmethod
    def load(cls, folder: Path, *, model: str | None = None) -> TextClassifier:
        """Reads what `save` wrote, and loads the tower.

        Args:
            folder: the head's folder.
            model: where the model is now; where it was if None.

        Raises:
            InputError: the folder holds no such head, it is damaged, or the model is not the one
                that the head was fitted on.
        """
        settings, arrays = read_head(folder, _KIND)
        try:
            head = ClassHead(tuple(settings["classes"]), arrays["kernel"], arrays["bias"])
            vectors = TextVectors.load(
                model or settings["model"],
                tower=settings["tower"],
                max_length=settings["max_length"],
            )
            if vectors.fingerprint() != settings["fingerprint"]:
                raise InputError(
                    f"{vectors.model} is not the model that head {str(folder)!r} was fitted on: "
                    "name that one with --model, or fit the head anew"
                )
            return cls(
                head, settings["method"], settings["text"], settings["label_column"], vectors
            )
        except KeyError as error:
            raise damaged(folder, error) from error


@dataclass(frozen=True)
class FittedClassifier:
    """What `fit_text_classifier` did.

    Attributes:
        classifier: ready to use.
        shots: number of texts it was fitted on.
        quality: of each method that was tried.
    """

    classifier: TextClassifier
    shots: int
    quality: dict[Method, Quality]


def fit_text_classifier(
    labelled: LabelledTexts,
    vectors: TextVectors,
    *,
    text: str,
    label_column: str,
    method: Method | None = None,
    shots_per_class: int | None = None,
    folds: int = 5,
    seed: int = 0,
    dtype: str | None = None,
    progress: StageProgress = lambda stage, done, total: None,
) -> FittedClassifier:
    """Tests heads by cross-validation and fits one.

    Args:
        labelled: the texts with their classes.
        vectors: the tower.
        text: see `TextClassifier`.
        label_column: see `TextClassifier`.
        method: kind of head; None for the one with the lower log loss in the test, ``linear``
            without a test.
        shots_per_class: rows of a class to fit on, at most, in the test too; all if None.
        folds: see `LabelledTexts.splits`; 0 for no test, and then the other rows are not encoded.
        seed: of the cross-validation inside `fit_logistic`.
        dtype: of encoding; see `towers.encoding.BatchEncoder`.
        progress: told (stage, done, in all).
    """
    shots = labelled.draw(shots_per_class)
    rows = np.arange(len(labelled.texts)) if folds else shots
    encoded = np.zeros((len(labelled.texts), vectors.encoder.embedding_dim), np.float32)
    encoded[rows] = vectors.encode(
        [labelled.texts[row] for row in rows],
        dtype=dtype,
        progress=partial(progress, f"Encoding {len(rows):,} texts"),
    )
    methods = METHODS if method is None else (method,)
    quality: dict[Method, Quality] = {}
    if folds:
        quality = cross_validate_heads(
            encoded,
            labelled,
            methods,
            folds=folds,
            shots_per_class=shots_per_class,
            seed=seed,
            progress=progress,
        )
        method = likelier(quality)
    elif method is None:
        method = "linear"
    head = fit_class_head(
        method, encoded[shots], labelled.label[shots], labelled.classes, seed=seed
    )
    return FittedClassifier(
        TextClassifier(head, method, text, label_column, vectors), len(shots), quality
    )


def fit_class_head(
    method: Method, vectors: np.ndarray, label: np.ndarray, classes: Sequence[str], *, seed: int = 0
) -> ClassHead:
    """Fits a head of either kind; see `fit_prototype` and `fit_logistic` for the arguments."""
    if method == "prototype":
        return fit_prototype(vectors, label, classes)
    return fit_logistic(vectors, label, classes, seed=seed)


def cross_validate_heads(
    vectors: np.ndarray,
    labelled: LabelledTexts,
    methods: Sequence[Method] = METHODS,
    *,
    folds: int = 5,
    shots_per_class: int | None = None,
    seed: int = 0,
    progress: StageProgress = lambda stage, done, total: None,
) -> dict[Method, Quality]:
    """Measures heads on the same folds.

    Args:
        vectors: float32 ``[rows, d]``, of `labelled`.
        labelled: the texts' classes.
        methods: kinds of head.
        folds: see `LabelledTexts.splits`.
        shots_per_class: likewise.
        seed: of the cross-validation inside `fit_logistic`.
        progress: told (stage, folds done, folds in all).
    """
    splits = labelled.splits(folds, shots_per_class)

    def fit(method: Method, rows: np.ndarray) -> Predictor:
        head = fit_class_head(
            method, vectors[rows], labelled.label[rows], labelled.classes, seed=seed
        )
        return lambda others: head.probabilities(vectors[others])

    return {
        method: cross_validate(
            partial(fit, method),
            labelled.label,
            splits,
            progress=partial(progress, f"Testing {method}"),
        )
        for method in methods
    }


def likelier(qualities: dict[Method, Quality]) -> Method:
    """The method with the lower cross-validated log loss, the first of equal ones."""
    return min(qualities, key=lambda method: qualities[method].measures["log_loss"].mean)

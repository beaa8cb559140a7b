"""Two towers with everything needed to feed them text: what a model folder holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np

from towers.attribute_fusion import AttributeFusion
from towers.attribute_reader import AttributeReader
from towers.checkpoint import DEFAULT_PRESET, load_backbone, load_vocabulary, read_vocabulary
from towers.encoding import BatchEncoder, Progress
from towers.errors import InputError
from towers.fingerprint import fingerprint
from towers.item_text import ItemTemplate, text_of
from towers.known_items import KnownItems
from towers.text_encoder import TextEncoder
from towers.tokenizer import Tokenizer
from towers.two_tower import TwoTower

_MODEL_FILE = "towers.keras"
_TEXT_FILE = "text.json"
_TOKENIZER_FOLDER = "tokenizer"
_FUSED_ROWS = 4096
_REVIEW_LENGTH = 128  # as of `training.heads`: reviews are longer than queries


@dataclass(frozen=True)
class TextSettings:
    """How text becomes tower input.

    Attributes:
        item_template: pattern of the item text; see `towers.ItemTemplate`.
        query_max_length: longest query in tokens, ``[CLS]`` and ``[SEP]`` included.
        item_max_length: longest item text in tokens, likewise.
        query_prefix: put before every query, for encoders trained with one (``"query: "``).
    """

    item_template: str = "{title}"
    query_max_length: int = 32
    item_max_length: int = 128
    query_prefix: str = ""

    def __post_init__(self) -> None:
        for name in ("query_max_length", "item_max_length"):
            if getattr(self, name) < 3:
                raise InputError(f"{name} must be at least 3, for [CLS] token [SEP]")
        ItemTemplate(self.item_template)


@dataclass
class Retriever:
    """A `TwoTower` with its tokenizer and text settings.

    Example:
        >>> retriever = Retriever.from_preset("all-MiniLM-L6-v2")
        >>> queries = retriever.encode_queries(["keep coffee hot"])
        >>> items = retriever.encode_items(["Vacuum flask 500 ml", "Garden rake"])
        >>> (queries @ items.T).argmax()
        0
    """

    model: TwoTower
    tokenizer: Tokenizer
    text: TextSettings = field(default_factory=TextSettings)
    known_items: KnownItems | None = field(default=None, kw_only=True, repr=False)
    _reader: AttributeReader | None = field(default=None, init=False, repr=False)
    _encoders: dict[tuple[int, str], BatchEncoder] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        for name, tower in (
            ("query_max_length", self.model.query_tower),
            ("item_max_length", self.model.item_tower),
        ):
            length, limit = getattr(self.text, name), int(tower.backbone.max_sequence_length)
            if length > limit:
                raise InputError(f"{name} {length} is over the encoder's {limit} positions")
        if self.model.fusion is not None:
            fused = {one.name: one.kind for one in self.model.fusion.attributes}
            if fused != self.template.attributes:
                raise InputError(
                    f"the towers fuse the attributes {fused}, and the item text template "
                    f"{self.text.item_template!r} has {self.template.attributes}"
                )
            self._reader = AttributeReader(self.model.fusion.attributes)

    @classmethod
    def from_preset(
        cls,
        preset: str = DEFAULT_PRESET,
        *,
        text: TextSettings | None = None,
        pooling: str = "mean",
        projection_dim: int | None = None,
        shared: bool = True,
        **two_tower: Any,
    ) -> Self:
        """Builds zero-shot towers on a pretrained checkpoint.

        Args:
            preset: see `towers.checkpoint`.
            text: text settings; the defaults if None.
            pooling: see `towers.TextEncoder`.
            projection_dim: see `towers.TextEncoder`.
            shared: one encoder for both towers; two that start alike if False.
            **two_tower: further arguments of `towers.TwoTower`.
        """

        def tower(name: str) -> TextEncoder:
            backbone = load_backbone(preset)
            return TextEncoder(backbone, pooling=pooling, projection_dim=projection_dim, name=name)

        query_tower = tower("text_encoder" if shared else "query_encoder")
        item_tower = query_tower if shared else tower("item_encoder")
        if not shared:  # a random projection must start the same in both
            item_tower.set_weights(query_tower.get_weights())
        tokenizer = Tokenizer.from_vocabulary(load_vocabulary(preset))
        return cls(
            TwoTower(query_tower, item_tower, **two_tower), tokenizer, text or TextSettings()
        )

    @property
    def embedding_dim(self) -> int:
        """Width of query and item vectors."""
        return int(self.model.query_tower.embedding_dim)

    @property
    def template(self) -> ItemTemplate:
        """The item text template."""
        return ItemTemplate(self.text.item_template)

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        dtype: str | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Encodes queries to unit vectors, float32 ``[len(texts), embedding_dim]``.

        Args:
            texts: the queries, without the prefix.
            dtype: compute dtype; see `towers.encoding.BatchEncoder`.
            progress: told about the progress.

        Raises:
            InputError: `texts` is one string, or holds something that is none.
        """
        prefix = self.text.query_prefix
        return self._encoder(self.model.query_tower, dtype).encode(
            [prefix + text for text in _texts(texts)],
            max_length=self.text.query_max_length,
            progress=progress,
        )

    @property
    def review_max_length(self) -> int:
        """Longest review in tokens: 128, or what the query tower has positions for."""
        positions = int(self.model.query_tower.backbone.max_sequence_length)
        return max(self.text.query_max_length, min(_REVIEW_LENGTH, positions))

    def encode_reviews(
        self,
        texts: Sequence[str],
        *,
        dtype: str | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """As `encode_queries`, of longer texts: reviews of `review_max_length` tokens."""
        prefix = self.text.query_prefix
        return self._encoder(self.model.query_tower, dtype).encode(
            [prefix + text for text in _texts(texts)],
            max_length=self.review_max_length,
            progress=progress,
        )

    def encode_items(
        self,
        texts: Sequence[str],
        *,
        dtype: str | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Encodes items to unit vectors, float32 ``[N, d]``.

        Args:
            texts: item texts, the template filled in. Attributes behind a text take part where the
                model has a fusion, and are passed over where it has none.
            dtype: as of `encode_queries`.
            progress: told about the progress.

        Raises:
            InputError: `texts` is one string, or holds something that is none; a vector behind a
                text is of another length than the fusion takes.
        """
        texts = _texts(texts)
        features = self.read_attributes(texts)
        vectors = self._encode_item_texts([text_of(text) for text in texts], dtype, progress)
        if features is not None:
            assert self.model.fusion is not None
            for start in range(0, len(vectors), _FUSED_ROWS):
                part = slice(start, start + _FUSED_ROWS)
                some = {name: values[part] for name, values in features.items()}
                fused = self.model.fusion(vectors[part], some)
                vectors[part] = keras.ops.convert_to_numpy(fused)
        return vectors

    def _encode_item_texts(
        self, texts: Sequence[str], dtype: str | None, progress: Progress | None
    ) -> np.ndarray:
        """Vectors of item texts without attributes; those that are known are not encoded."""
        tower = self.model.item_tower
        rows = np.full(len(texts), -1) if self.known_items is None else self.known_items.rows(texts)
        vectors = np.empty((len(texts), tower.embedding_dim), np.float32)
        (known,), (new,) = np.nonzero(rows >= 0), np.nonzero(rows < 0)
        if self.known_items is not None:
            vectors[known] = tower.project(self.known_items.vectors[rows[known]])
        vectors[new] = self._encoder(tower, dtype).encode(
            [texts[place] for place in new.tolist()],
            max_length=self.text.item_max_length,
            progress=progress,
        )
        return vectors

    def encode_base(
        self,
        texts: Sequence[str],
        *,
        dtype: str | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Encodes item texts as far as towers agree that differ by a projection or attributes.

        Args:
            texts: item texts; attributes behind them are passed over.
            dtype: as of `encode_queries`.
            progress: told about the progress.

        Returns:
            float32 ``[N, hidden]``, unit vectors; what `knowing` takes.
        """
        tower = self.model.item_tower.without_projection()
        return BatchEncoder(tower, self.tokenizer, dtype).encode(
            [text_of(text) for text in texts],
            max_length=self.text.item_max_length,
            progress=progress,
        )

    def knowing(self, texts: Sequence[str], vectors: np.ndarray) -> Retriever:
        """The same towers, which look these items up instead of encoding them.

        Args:
            texts: item texts.
            vectors: float ``[N, hidden]``, `encode_base` of them by towers of the same
                `base_fingerprint`.
        """
        known = KnownItems([text_of(text) for text in texts], vectors)
        return replace(self, known_items=known)

    def read_attributes(self, texts: Sequence[str]) -> dict[str, np.ndarray] | None:
        """Features of items, as a batch of `towers.TwoTower` has them; None without a fusion."""
        return None if self._reader is None else self._reader.read(texts)

    def with_fusion(self, fusion: AttributeFusion | None) -> Retriever:
        """The same towers with another fusion of attributes.

        Without one the template has no attributes either.

        Raises:
            InputError: the fusion is not of the attributes that the template has.
        """
        template = self.template.text if fusion is None else self.template
        text = replace(self.text, item_template=template.pattern)
        return replace(self, model=self.model.with_fusion(fusion), text=text)

    def with_map(self, kernel: np.ndarray, *, items: bool) -> Retriever:
        """Towers in float32 whose vectors are these, times a matrix, normalised.

        Args:
            kernel: float32 ``[d, d]``.
            items: whether item vectors are mapped too, or those of queries alone.
        """
        model = self.model
        query_tower = model.query_tower.with_map(kernel)
        item_tower = model.item_tower
        if items:
            item_tower = query_tower if model.shared else item_tower.with_map(kernel)
            if model.fusion is not None:
                model = model.with_fusion(model.fusion.mapped(kernel))
        model = model.with_towers(query_tower, item_tower).with_dtype("float32")
        return replace(self, model=model)

    def _encoder(self, tower: TextEncoder, dtype: str | None) -> BatchEncoder:
        key = id(tower), dtype or tower.compute_dtype
        if key not in self._encoders:
            self._encoders[key] = BatchEncoder(tower, self.tokenizer, dtype)
        return self._encoders[key]

    def fingerprint(self) -> str:
        """SHA-256 of all that decides an item's vector: while equal, an item index stays valid."""
        return fingerprint(
            self.model.item_tower,
            self.tokenizer,
            self.text.item_template,
            self.text.item_max_length,
            *([] if self.model.fusion is None else [self.model.fusion.digest()]),
        )

    def base_fingerprint(self) -> str:
        """SHA-256 of all that decides an item's vector ahead of a projection and of attributes."""
        return fingerprint(
            self.model.item_tower, self.tokenizer, self.text.item_max_length, projection=False
        )

    def as_float32(self) -> Retriever:
        """The same towers computing in float32, for export; itself where they do already."""
        model = self.model.with_dtype("float32")
        return self if model is self.model else Retriever(model, self.tokenizer, self.text)

    def save(self, folder: str | Path) -> None:
        """Writes the towers, vocabulary and text settings into a folder, in float32."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(path / _TOKENIZER_FOLDER)
        (path / _TEXT_FILE).write_text(json.dumps(asdict(self.text), indent=2) + "\n", "utf-8")
        partial = path / f"partial-{_MODEL_FILE}"
        self.model.with_dtype("float32").save(partial)
        partial.replace(path / _MODEL_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            InputError: the folder is not a model folder, or a file in it is damaged.
        """
        path = Path(folder)
        for name in (_MODEL_FILE, _TEXT_FILE, f"{_TOKENIZER_FOLDER}/vocab.txt"):
            if not (path / name).is_file():
                raise InputError(f"{str(folder)!r} is not a model folder: it holds no {name}")
        try:
            model = keras.saving.load_model(path / _MODEL_FILE, compile=False)
            text = TextSettings(**json.loads((path / _TEXT_FILE).read_text("utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"model folder {str(folder)!r} is damaged: {error}") from error
        vocabulary = read_vocabulary(path / _TOKENIZER_FOLDER)
        assert vocabulary is not None  # its file has just been seen
        return cls(model, Tokenizer.from_vocabulary(vocabulary), text)


def _texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list; one string is a sequence too, of letters, and never what was meant."""
    if isinstance(texts, str | bytes):
        raise InputError(f"expected a list of texts, got one string; pass [{texts!r}]")
    texts = list(texts)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {place} is {text!r}, expected a string")
    return texts

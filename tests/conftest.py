"""A tiny BERT and a tiny catalogue that every test may use."""

from __future__ import annotations

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # before TFRS is imported anywhere
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from collections.abc import Callable

import pytest

# Strings that break tokenizers, encoders, protocols and file formats.
GOLDEN_TEXTS = [
    "kettle",
    "Café crème brûlée",
    "naïve façade ½ in. × 20 cm",
    "漢字かな交じり文 电热水壶",
    "👩‍👩‍👧 mug 🔥",
    "ﬁne ligature Ⅷ",
    "tab\tand\nline\u0000null\u200bzero\ufeff",
    "",
    "   ",
    "x" * 10_000,
    "red mug " * 1_250,
    'quote " comma , backslash \\ {brace}',
    "[SEP] [MASK]",
]

TINY_CATALOG = {
    "item_id": ["k1", "k2", "m1", "m2", "g1", "g2", "p 1", "é1"],
    "title": [
        "Electric kettle 1.7 l",
        "Gooseneck kettle for coffee",
        "Travel mug with lid",
        "Red mug",
        "Garden rake",
        "Garden hose 20 m",
        "Cat scratching post",
        "Crème brûlée torch",
    ],
    "brand": ["Harrow", "Kettlewise", "Harrow", "", "Oakfield", "Oakfield", "Purr", ""],
    "description": [
        "Boils water fast and switches off by itself.",
        "A slow pour for filter coffee.",
        "Keeps coffee hot for hours.",
        "Holds 350 ml.",
        "Steel tines, ash handle.",
        "Does not kink.",
        "Saves the sofa from claws.",
        "Refillable, with a safety lock.",
    ],
}


@pytest.fixture(scope="session")
def golden_texts() -> list[str]:
    """Strings that break tokenizers, encoders, protocols and file formats."""
    return list(GOLDEN_TEXTS)


@pytest.fixture(scope="session")
def tiny_catalog() -> dict[str, list[str]]:
    """Eight items as columns: item_id, title, brand, description."""
    return {name: list(values) for name, values in TINY_CATALOG.items()}


@pytest.fixture(scope="session")
def tiny_vocabulary() -> tuple[str, ...]:
    """A WordPiece vocabulary: special tokens, the catalogue's words, letters and their suffixes."""
    words = {
        word.strip(".,").lower()
        for column in ("title", "description")
        for text in TINY_CATALOG[column]
        for word in text.split()
    }
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.,")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *letters, *(f"##{x}" for x in letters), *sorted(words - set(letters))]
    return tuple(dict.fromkeys(tokens))


@pytest.fixture(scope="session")
def make_tiny_retriever(tiny_vocabulary: tuple[str, ...]) -> Callable[..., object]:
    """A factory of untrained two-layer retrievers."""
    import keras
    import keras_hub

    from towers import Retriever, TextEncoder, TextSettings, Tokenizer, TwoTower

    def make(
        seed: int = 0,
        shared: bool = True,
        dtype: str = "float32",
        text: TextSettings | None = None,
        projection_dim: int | None = None,
        **two_tower: object,
    ) -> Retriever:
        def tower() -> TextEncoder:
            keras.utils.set_random_seed(seed)
            backbone = keras_hub.models.BertBackbone(
                vocabulary_size=len(tiny_vocabulary),
                num_layers=2,
                num_heads=2,
                hidden_dim=32,
                intermediate_dim=64,
                max_sequence_length=64,
                dropout=0.0,
                dtype=dtype,
            )
            # Wider than BERT's initialiser: texts shall have clearly different vectors.
            for weight in backbone.trainable_weights:
                if "kernel" in weight.path or "embeddings" in weight.path:
                    weight.assign(weight * 6.0)
            return TextEncoder(backbone, projection_dim=projection_dim)

        query_tower = tower()
        item_tower = query_tower if shared else tower()
        settings = text or TextSettings("{title}[ by {brand}][. {description}]", 16, 48)
        return Retriever(
            TwoTower(query_tower, item_tower, **two_tower), Tokenizer(tiny_vocabulary), settings
        )

    return make


@pytest.fixture(scope="session")
def tiny_retriever(make_tiny_retriever: Callable[..., object]) -> object:
    """An untrained retriever for tests that do not change it."""
    return make_tiny_retriever()


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory: pytest.TempPathFactory, tiny_retriever: object) -> str:
    """A folder with the checkpoint of `tiny_retriever`, to be named as an encoder."""
    folder = tmp_path_factory.mktemp("tiny_preset")
    tiny_retriever.model.query_tower.backbone.save_to_preset(str(folder))
    tiny_retriever.tokenizer.save(folder)
    return str(folder)

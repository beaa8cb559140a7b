"""Changed texts: what each change does, which may happen, and that training sees them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from towers.errors import InputError
from towers.retriever import Retriever
from training.augmentation import (
    Augmenter,
    BackTranslation,
    Change,
    Synonyms,
    drop_words,
    respell_unit,
    swap_words,
)
from training.batches import PairBatches
from training.catalog import Catalog
from training.config import AugmentConfig, FitConfig, TrainConfig
from training.fit import adapt
from training.interactions import Interactions

QUERY = "red garden hose with brass nozzle 25 m"


def outcomes(change: Callable[[str, np.random.Generator], str], text: str, n: int = 200) -> Counter:
    """What a change makes of a text, with how often."""
    rng = np.random.default_rng(0)
    return Counter(change(text, rng) for _ in range(n))


def test_one_word_in_ten_is_left_out() -> None:
    words = QUERY.split()
    expected = {" ".join(words[:n] + words[n + 1 :]) for n in range(len(words))}
    assert set(outcomes(drop_words, QUERY)) == expected
    long = " ".join(f"w{n}" for n in range(30))
    assert {len(text.split()) for text in outcomes(drop_words, long)} == {27}


def test_two_words_change_places() -> None:
    found = outcomes(swap_words, "a b c")
    assert set(found) == {"b a c", "c b a", "a c b"}
    assert min(found.values()) > 40  # a third of 200 each, give or take four deviations
    for text in outcomes(swap_words, QUERY):
        assert Counter(text.split()) == Counter(QUERY.split())


@pytest.mark.parametrize("change", [drop_words, swap_words, respell_unit])
@pytest.mark.parametrize("text", ["", "hose", "漢字", "   "])
def test_nothing_to_change(change: Callable[..., str], text: str) -> None:
    assert set(outcomes(change, text, 5)) == {text}


@pytest.mark.parametrize(
    ("text", "some", "never"),
    [
        ("5 in. pipe", {'5" pipe', "5 inch pipe"}, "5 in. pipe"),
        ('12" fan', {"12 inches fan", "12 in. fan"}, '12 " fan'),
        ("5-gal. bucket", {"5-gallon bucket"}, "5-gal. bucket"),
        ("2 sq. ft. tile", {"2 square feet tile"}, "2 sq. foot tile"),
        ("10 lbs weight", {"10 pounds weight", "10 lb. weight"}, "10 lbs weight"),
        ("sink w/ faucet", {"sink with faucet"}, "sink w/ faucet"),
        ("door without lock", {"door w/o lock"}, "door without lock"),
        ("Black & Decker", {"Black and Decker", "blk & Decker"}, "Black & Decker"),
    ],
)
def test_spellings(text: str, some: set[str], never: str) -> None:
    found = outcomes(respell_unit, text, 400)
    assert some <= set(found)
    assert never not in found


@pytest.mark.parametrize("text", ["3 in 1 tool", "5 inserts", "in wall", "andiron", "12 minutes"])
def test_what_only_looks_like_a_unit_stays(text: str) -> None:
    assert set(outcomes(respell_unit, text, 50)) == {text}


def test_synonyms_of_a_file_hold_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.tsv"
    path.write_text("text\tsynonym\nSofa\tcouch\nsofa\tsettee\nstrip light\tbatten\n", "utf-8")
    synonyms = Synonyms.read(path)
    assert set(outcomes(synonyms, "grey SOFA bed")) == {"grey couch bed", "grey settee bed"}
    assert set(outcomes(synonyms, "couch")) == {"sofa"}
    assert set(outcomes(synonyms, "led strip light")) == {"led batten"}
    assert set(outcomes(synonyms, "sofas")) == {"sofas"}
    assert set(outcomes(Synonyms({}), "sofa")) == {"sofa"}


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("word,other\nsofa,couch\n", "utf-8")
    with pytest.raises(InputError, match=r"bad\.csv.*'text'"):
        Synonyms.read(tmp_path / "bad.csv")


def write_wordnet(folder: Path) -> None:
    """A WordNet of one noun with two meanings, in the format of WordNet 3's files (wndb(5WN))."""
    folder.mkdir(parents=True)
    (folder / "index.sense").touch()
    for part in ("adj", "adv", "noun", "verb"):
        for name in (f"index.{part}", f"data.{part}", f"{part}.exc"):
            (folder / name).touch()
    (folder / "lexnames").write_text("00\tadj.all\t3\n01\tnoun.artifact\t1\n")
    first = "00000000 01 n 03 sofa 0 couch 0 davenport_sofa 0 000 | a seat\n"
    second = f"{len(first):08d} 01 n 02 sofa 1 wrong 0 000 | of another meaning\n"
    (folder / "data.noun").write_text(first + second)
    (folder / "index.noun").write_text(f"sofa n 2 0 2 2 00000000 {len(first):08d}  \n")


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(InputError, match="NLTK finds no WordNet on this machine"):
        Synonyms.from_wordnet(["sofa"])
    write_wordnet(tmp_path / "corpora" / "wordnet")
    kind = nltk.corpus.reader.WordNetCorpusReader
    # Once loaded, NLTK's own object would keep these data for the tests that follow.
    monkeypatch.setattr(nltk.corpus, "wordnet", nltk.corpus.LazyCorpusLoader("wordnet", kind, None))
    synonyms = Synonyms.from_wordnet(["Sofa", "bed", "25"])
    assert set(outcomes(synonyms, "sofa bed")) == {"couch bed", "davenport sofa bed"}


def test_wordnet_without_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(InputError, match="augment"):
        Synonyms.from_wordnet(["sofa"])


def test_back_translation_is_asked_once() -> None:
    asked: list[list[str]] = []

    def translate(texts: list[str]) -> list[str]:
        asked.append(texts)
        return [{"one": "eins", "two": ""}[text] for text in texts]

    change = BackTranslation(translate, ["one", "two", "one"])
    rng = np.random.default_rng(0)
    assert [change(text, rng) for text in ("one", "two", "three")] == ["eins", "two", "three"]
    assert asked == [["one", "two"]]


@pytest.mark.parametrize("returned", ["text", ["one"], [1, 2], None])
def test_a_translator_must_return_a_text_for_each(returned: object) -> None:
    with pytest.raises(InputError, match=r"module:f (returned|must return)"):
        BackTranslation(lambda texts: returned, ["one", "two"], name="module:f")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("translate", "module:function"),
        ("no_such_module:f", "cannot be imported"),
        ("json:no_such", "cannot be imported"),
        ("json:__doc__", "is no function"),
    ],
)
def test_translators_that_are_none(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BackTranslation.load(name)


def test_each_change_has_its_probability() -> None:
    def marked(letter: str) -> Callable[[str, np.random.Generator], str]:
        return lambda text, rng: text + letter

    augmenter = Augmenter([Change(0.5, marked("a")), Change(0.2, marked("b"))])
    found = outcomes(augmenter, "", 4000)
    shares = {text: count / 4000 for text, count in found.items()}
    assert shares == pytest.approx({"": 0.4, "a": 0.4, "b": 0.1, "ab": 0.1}, abs=0.03)


def test_off_by_default() -> None:
    assert Augmenter.from_config(AugmentConfig(), ["sofa"]) is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"synonyms": 0.1}, "need synonyms_from"),
        ({"back_translation": 0.1}, "needs translator"),
        ({"typos": 1.5}, "fit.augment.typos"),
        ({"typo": 0.1}, "fit.augment.typo"),
    ],
)
def test_what_a_configuration_must_say(table: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig.read(None, fit={"augment": table})


@pytest.fixture
def pairs(tmp_path: Path, tiny_catalog: dict[str, list[str]]) -> Interactions:
    rows = list(zip(tiny_catalog["item_id"], tiny_catalog["title"], strict=True))
    lines = ["item_id,title", *(f"{item},{title}" for item, title in rows)]
    (tmp_path / "catalog.csv").write_text("\n".join(lines), "utf-8")
    catalog = Catalog.read(tmp_path / "catalog.csv")
    judged = [f"{title.lower()},{item}" for item, title in rows]
    (tmp_path / "pairs.csv").write_text("query,item_id\n" + "\n".join(judged), "utf-8")
    return Interactions.read(tmp_path / "pairs.csv", catalog)


def test_queries_of_batches_change_anew_in_every_epoch(
    tiny_retriever: Retriever, pairs: Interactions, tiny_catalog: dict[str, list[str]]
) -> None:
    def queries(epoch: int, augmentation: object) -> list[bytes]:
        batches = PairBatches(
            tiny_retriever,
            pairs,
            tiny_catalog["title"],
            batch_size=8,
            augmentation=augmentation,
        )
        batches.epoch = epoch
        batch = next(batches.dataset().as_numpy_iterator())
        tokens, items = batch[0]["query"]["token_ids"], batch[0]["item_ids"]
        return [tokens[row].tobytes().rstrip(b"\0") for row in np.argsort(items)]

    augmenter = Augmenter.from_config(AugmentConfig(word_dropout=1.0), pairs.queries)
    plain = queries(0, None)
    assert queries(1, None) == plain
    first, again, second = (queries(epoch, augmenter) for epoch in (0, 0, 1))
    assert first == again
    assert first != second
    assert all(a != b for a, b in zip(first, plain, strict=True))


def test_training_takes_the_configured_changes(
    tmp_path: Path,
    make_tiny_retriever: Callable[..., Retriever],
    pairs: Interactions,
    tiny_catalog: dict[str, list[str]],
) -> None:
    """Changed queries leave other losses than plain ones."""

    def run(name: str, **augment: float) -> list[float]:
        config = FitConfig(
            epochs=1,
            min_steps=1,
            batch_size=8,
            learning_rate=1e-3,
            augment=AugmentConfig(**augment),
        )
        texts = tiny_catalog["title"]
        return adapt(
            make_tiny_retriever(), pairs, texts, config, folder=tmp_path / name, seed=1
        ).losses

    assert run("typos", typos=1.0) != run("plain")

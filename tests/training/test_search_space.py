"""What can be searched over, and what is refused."""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from towers.errors import InputError
from training.config import TrainConfig
from training.search_space import Choices, Range, SearchSpace

optuna = pytest.importorskip("optuna")

# What changes a trial: its towers, the pairs and negatives they learn from, the loss, the steps, or
# the ranking of the held-out queries.
SEARCHABLE_IN = {
    "": "method lexical warm_up",
    "encoder": (
        "preset pooling projection_dim shared item_template query_max_length "
        "item_max_length query_prefix"
    ),
    "fit": (
        "epochs min_steps batch_size learning_rate warmup weight_decay clip_norm "
        "temperature learn_temperature symmetric loss margin catalog_negatives "
        "hard_negatives hard_negatives_from judged_negatives cached_negatives remine "
        "anchor fgm r_drop mixed_precision towers soup layer_decay distillation "
        "pseudo_queries rank alpha kernels top_layers bottleneck prefix_length"
    ),
    "fit.augment": (
        "typos word_dropout word_swap synonyms synonyms_from units back_translation translator"
    ),
}
SEARCHABLE = [
    f"{table}.{name}".removeprefix(".")
    for table, names in SEARCHABLE_IN.items()
    for name in names.split()
]
# What does not, or would make the score another one: values that a configuration may have, and what
# is said.
REFUSED: dict[str, tuple[list[Any], str]] = {
    "seed": ([0, 1], "decides what is measured"),
    "shots": ([8, 16], "decides what is measured"),
    "min_grade": ([1, 2], "decides what is measured"),
    "strategy": (["auto", "mirrored"], "not what it learns"),
    "deterministic": ([True, False], "not what it learns"),
    "encoder.numeric": ([[], ["price"]], "search encoder.item_template"),
    "encoder.categorical": ([[], ["brand"]], "search encoder.item_template"),
    "encoder.image": ([True, False], "search encoder.item_template"),
    "fit.held_out": ([0.0, 0.2], "search fit.epochs"),
    "fit.min_held_out": ([4, 16], "search fit.epochs"),
    "fit.patience": ([1, 2], "search fit.epochs"),
    "fit.interpolate": ([True, False, [0.5, 1.0]], "search fit.learning_rate or fit.anchor"),
    "fit.accumulate": ([1, 4], "search fit.batch_size"),
    "update.replay": ([0.5, 1.0], "belongs to `towers update`"),
    "update.anchor": ([0.5, 1.0], "belongs to `towers update`"),
    "update.held_out": ([0.1, 0.2], "belongs to `towers update`"),
    "update.measure": (["nDCG@10", "MRR@10"], "belongs to `towers update`"),
    "update.max_drop": ([0.0, 0.1], "belongs to `towers update`"),
}


def parse(text: str) -> SearchSpace:
    return SearchSpace.parse(tomllib.loads(text), "search.toml")


TOML = """
seed = 3
[fit]
epochs = 2
[search]
method = ["full", "lora"]
"fit.learning_rate" = { low = 1e-5, high = 1e-3, log = true }
fit.epochs = { low = 1, high = 4 }
[search.fit.augment]
typos = [0.0, 0.2]
"""


def test_fields_of_both_spellings() -> None:
    space = parse(TOML)
    assert space.fields == {
        "method": Choices(("full", "lora")),
        "fit.learning_rate": Range(1e-5, 1e-3, log=True),
        "fit.epochs": Range(1, 4),
        "fit.augment.typos": Choices((0.0, 0.2)),
    }
    assert space.base == {"seed": 3, "method": "full", "fit": {"epochs": 2}}


def test_a_trial_is_a_configuration_in_the_space() -> None:
    space = parse(TOML)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = []
    for _ in range(20):
        config = space.config(space.suggest(study.ask()))
        assert (config.seed, config.fit.batch_size) == (3, 32)
        assert 1e-5 <= config.fit.learning_rate <= 1e-3
        assert 1 <= config.fit.epochs <= 4
        seen.append((config.method, config.fit.epochs, config.fit.augment.typos))
    assert [set(values) for values in zip(*seen, strict=True)] == [
        {"full", "lora"},
        {1, 2, 3, 4},
        {0.0, 0.2},
    ]
    assert space.base["fit"] == {"epochs": 2}  # untouched


def test_the_first_trial_is_the_configuration_itself() -> None:
    space = parse(TOML)
    study = optuna.create_study()
    study.enqueue_trial(space.start())
    chosen = space.suggest(study.ask())
    assert (chosen["method"], chosen["fit.epochs"], chosen["fit.augment.typos"]) == ("full", 2, 0.0)


def test_lists_and_tables_can_be_values() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    lists = Choices(([0.5, 1.0], False))
    drawn = [lists.suggest(study.ask(), "shares") for _ in range(10)]
    assert [0.5, 1.0] in drawn
    assert False in drawn
    space = parse("[search]\nfit.augment = [{ typos = 0.5, units = 1.0 }, {}]")
    drawn = [space.config(space.suggest(study.ask())).fit.augment for _ in range(10)]
    assert {(augment.typos, augment.units) for augment in drawn} == {(0.5, 1.0), (0.0, 0.0)}


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All fields of a configuration by their names, those of its tables included."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        tables = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if tables:
            yield from fields(tables[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_field_is_decided_on() -> None:
    """A new field of a configuration: does a trial change with it? Then it belongs above."""
    assert sorted(fields(TrainConfig)) == sorted([*SEARCHABLE, *REFUSED])


def default(name: str) -> Any:
    value: Any = TrainConfig().model_dump(mode="json")
    for part in name.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("name", SEARCHABLE)
def test_what_changes_a_trial_can_be_searched(name: str) -> None:
    others = {
        "method": "full",
        "warm_up": "off",
        "encoder.projection_dim": 8,
        "encoder.item_template": "{title}",
        "fit.learning_rate": 1e-4,
        "fit.augment.synonyms_from": "wordnet",
        "fit.augment.translator": "shop:paraphrase",
    }
    value = others.get(name, default(name))
    space = SearchSpace.parse({"search": {name: [value]}}, "search.toml")
    assert space.fields == {name: Choices((value,))}


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_nothing_is_refused(name: str) -> None:
    values, message = REFUSED[name]
    for value in values:  # which are no mistakes elsewhere
        config: dict[str, Any] = {}
        *tables, field = name.split(".")
        place = config
        for table in tables:
            place = place.setdefault(table, {})
        place[field] = value
        TrainConfig.of(config, "test")
        for search in ({name: [value]}, {name.partition(".")[0]: [config[name.partition(".")[0]]]}):
            with pytest.raises(InputError) as refused:
                SearchSpace.parse({"search": search}, "search.toml")
            assert str(refused.value).startswith(f"search.toml: search.{name}: ")
            assert message in str(refused.value)


def test_a_warm_up_is_searched_against_none() -> None:
    """What stands for it in the configuration, auto, is off in a trial."""
    space = parse('[search]\nwarm_up = ["off", "catalog"]')
    assert space.start() == {"warm_up": '"off"'}
    assert {space.config({"warm_up": value}).warm_up for value in ("off", "catalog")} == {
        "off",
        "catalog",
    }
    assert space.config({}).warm_up == "off"
    with pytest.raises(InputError, match=r'search\.warm_up: .*auto is off: search \["off", "cat'):
        parse('[search]\nwarm_up = ["auto", "off"]')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"search\.toml: nothing to search over"),
        ("search = 3", "nothing to search over"),
        ("[search]", "nothing to search over"),
        ("[search]\nfit.epochs = 3", r"search\.fit\.epochs: a list of values or"),
        ("[search]\nfit.epochs = []", "no value to choose from"),
        ("[search]\nfit = 3", r"search\.fit: a list of values or"),
        ("[search]\nfit.epochs = { low = 3 }", "low and high must be numbers"),
        ("[search]\nfit.epochs = { low = 3, high = 3 }", "low below high"),
        ("[search]\nfit.epochs = { low = 1, high = 3, step = 2 }", "low below high; and log"),
        ("[search]\nfit.weight_decay = { low = 0.0, high = 1.0, log = true }", "low is above 0"),
        ("[search]\nfit.epoch = [3]", r"fit\.epoch"),
        ("[search]\nfit.epochs = [3, 0]", r"fit\.epochs = 0.*greater than or equal to 1"),
        ("[search]\nfit.epochs = { low = 1.0, high = 2.5 }", r"fit\.epochs"),
        ("[search]\nshots = [8, 16]", "decides what is measured"),
        ('[search]\nmethod = ["auto", "full"]', "auto is a search itself"),
        ("[fit]\nepoch = 3\n[search]\nfit.epochs = [3]", r"fit\.epoch"),
    ],
)
def test_what_is_no_search(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(text)


def test_values_that_only_fit_together_are_the_trials_business() -> None:
    fit = "[fit]\naccumulate = 8\ncached_negatives = 64\n"
    space: Any = parse(
        f"{fit}[search]\nfit.remine = [0, 1]\nfit.cached_negatives = [0, 64]\n"
        "fit.batch_size = [8, 16]"
    )
    assert space.config({"fit.remine": 1, "fit.cached_negatives": 64}).fit.remine == 1
    with pytest.raises(InputError, match="remine needs hard_negatives or cached_negatives"):
        space.config({"fit.remine": 1, "fit.cached_negatives": 0})
    with pytest.raises(InputError, match="more parts than the batch"):
        parse(f"{fit}[search]\nfit.batch_size = [4, 8]")

"""What can be searched over, and what is refused."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from towers.errors import InputError
from training.search_space import Choices, Range, SearchSpace

optuna = pytest.importorskip("optuna")


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


def test_lists_can_be_values() -> None:
    space = parse("[search]\nfit.interpolate = [[0.5, 1.0], false]")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    shares = [space.config(space.suggest(study.ask())).fit.shares for _ in range(10)]
    assert [] in shares
    assert [0.5, 1.0] in shares


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"search\.toml: nothing to search over"),
        ("search = 3", "nothing to search over"),
        ("[search]", "nothing to search over"),
        ("[search]\nfit.epochs = 3", r"search\.fit\.epochs: a list of values or"),
        ("[search]\nfit.epochs = []", "no value to choose from"),
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
    space: Any = parse("[search]\nfit.batch_size = [4, 8]\nfit.accumulate = [1, 8]")
    assert space.config({"fit.batch_size": 8, "fit.accumulate": 8}).fit.accumulate == 8
    with pytest.raises(InputError, match="more parts than the batch"):
        space.config({"fit.batch_size": 4, "fit.accumulate": 8})

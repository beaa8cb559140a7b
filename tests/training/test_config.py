from __future__ import annotations

import json
from pathlib import Path

import pytest

from towers.errors import InputError
from training.config import FitConfig, TrainConfig


def write(folder: Path, text: str, name: str = "run.toml") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


def test_defaults() -> None:
    config = TrainConfig.read(None)
    assert config == TrainConfig()
    assert config.fit.batch_size == 32
    assert config.shots is None


def test_toml(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'method = "zero-shot"\nshots = 64\n[encoder]\nitem_template = "{title}"\n'
        "[fit]\nlearning_rate = 1\nlearn_temperature = true\n",
    )
    config = TrainConfig.read(path)
    assert (config.method, config.shots) == ("zero-shot", 64)
    assert config.encoder.item_template == "{title}"
    assert config.fit == FitConfig(learning_rate=1.0, learn_temperature=True)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    config = TrainConfig.read(None, shots=8, fit={"epochs": 2}, encoder={"projection_dim": 64})
    path = write(tmp_path, json.dumps(config.model_dump(mode="json")), "config.json")
    assert TrainConfig.read(path) == config


def test_options_go_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 3\nshots = 8\n[fit]\nepochs = 9\nbatch_size = 4\n")
    config = TrainConfig.read(
        path, shots=16, seed=None, fit={"epochs": 2, "batch_size": None}, encoder={"preset": None}
    )
    assert (config.seed, config.shots) == (3, 16)
    assert (config.fit.epochs, config.fit.batch_size) == (2, 4)
    assert TrainConfig.read(path, seed=0).seed == 0


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("colour = 3", "colour", "Extra inputs are not permitted"),
        ("[fit]\nepoch = 3", "fit.epoch", "Extra inputs are not permitted"),
        ('[fit]\nepochs = "five"', "fit.epochs", "valid integer"),
        ('[fit]\nepochs = "5"', "fit.epochs", "valid integer"),
        ("[fit]\nepochs = true", "fit.epochs", "valid integer"),
        ("[fit]\nepochs = 2.5", "fit.epochs", "valid integer"),
        ("[fit]\nepochs = 0", "fit.epochs", "greater than or equal to 1"),
        ("[fit]\nlearning_rate = nan", "fit.learning_rate", "finite number"),
        ("[fit]\ntemperature = inf", "fit.temperature", "finite number"),
        ("[fit]\ntemperature = 0", "fit.temperature", "greater than 0"),
        ("[fit]\nbatch_size = 1", "fit.batch_size", "greater than or equal to 2"),
        ("[fit]\nwarmup = 1.0", "fit.warmup", "less than 1"),
        ("fit = 3", "fit", "FitConfig"),
        ('method = "lora2"', "method", "Input should be 'zero-shot', 'full', 'linear', 'lora'"),
        (
            "[fit]\ninterpolate = [0.5, 1.5]",
            "fit.interpolate.list[constrained-float].1",
            "less than or equal to 1",
        ),
        ("[fit]\nlayer_decay = 0", "fit.layer_decay", "greater than 0"),
        ('[fit]\ntowers = "item"', "fit.towers", "'both' or 'query'"),
        ("[fit]\nrank = 0", "fit.rank", "greater than or equal to 1"),
        ('[encoder]\npooling = "first"', "encoder.pooling", "'mean', 'cls' or 'max'"),
        ("shots = 0", "shots", "greater than or equal to 1"),
    ],
)
def test_faults_name_file_and_field(text: str, field: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        TrainConfig.read(path, fit={"batch_size": None})
    assert str(path) in str(error.value)
    assert f"{field}: " in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_section_that_is_no_table_stays_an_error_with_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fit: "):
        TrainConfig.read(write(tmp_path, "fit = 3"), fit={"epochs": 2})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(InputError, match=r"configuration \(options\): .*shots.*; fit\.epochs"):
        TrainConfig.read(None, shots=-1, fit={"epochs": 0})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.toml", "epochs = = 3", r"not valid TOML: .*line 1"),
        ("run.json", '{"seed": }', r"not valid JSON: .*line 1"),
        ("run.json", "[1, 2]", "a table of fields"),
        ("run.json", "3", "a table of fields"),
    ],
)
def test_files_that_cannot_be_parsed(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text, name)
    with pytest.raises(InputError, match=message) as error:
        TrainConfig.read(path)
    assert str(error.value).startswith(str(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        TrainConfig.read(tmp_path / "missing.toml")
    (tmp_path / "latin.toml").write_bytes(b'method = "\xe9"')
    with pytest.raises(InputError, match="cannot be read as a configuration"):
        TrainConfig.read(tmp_path / "latin.toml")
    with pytest.raises(InputError, match="cannot be read as a configuration"):
        TrainConfig.read(tmp_path)

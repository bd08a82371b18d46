"""Tests of training/settings.py and the defaults in training/config.py."""

import argparse

import pytest
import yaml

from training.config import Config, Data, Supernet
from training.errors import CheckpointError, ConfigError
from training.settings import (
    add_flags,
    check_resumable,
    flatten,
    from_dict,
    from_flags,
    pin,
    presets,
    read_yaml,
    save,
    to_dict,
)


def _parse(*arguments):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return from_flags(parser.parse_args(arguments))


def test_from_flags_nothing_given_gives_the_defaults():
    assert _parse() == Config()


def test_from_flags_command_line_wins_over_file_wins_over_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\nsupernet: {epochs: 2, batch_size: 64}\ndata: {source: there}\n")
    config = _parse("--config", str(file), "--data", "here", "--set", "supernet.epochs=3")
    assert config.data.source == "here"
    assert config.supernet == Supernet(epochs=3, batch_size=64)
    assert config.seed == 1
    assert config.agent == Config().agent


def test_from_flags_every_plain_flag_reaches_its_setting():
    config = _parse(
        "--data", "d", "--backbone", "vgg16", "--out", "b/mine", "--seed", "7", "--threads", "2",
        "--device", "cpu",
    )  # fmt: skip
    assert (config.data.source, config.backbone.name, config.out) == ("d", "vgg16", "b/mine")
    assert (config.seed, config.threads, config.device) == (7, 2, "cpu")
    assert config.work_dir.parts == ("runs", "mine")


@pytest.mark.parametrize("name", presets())
def test_preset_is_valid(name):
    assert from_dict(read_yaml(name)) != Config()


def test_presets_include_the_tiny_one():
    assert "tiny" in presets()


def test_from_dict_reads_back_what_to_dict_wrote():
    config = from_dict({"evaluation": {"budgets": [0.5, 1]}, "supernet": {"flip": False}})
    assert config.evaluation.budgets == (0.5, 1.0)
    assert from_dict(to_dict(config)) == config


def test_from_flags_scientific_notation_is_a_number():
    assert _parse("--set", "supernet.weight_decay=1e-3").supernet.weight_decay == 1e-3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("supernet.epoch=3", r"supernet\.epoch is unknown: did you mean supernet\.epochs\?"),
        ("epochs=3", r"setting epochs is unknown: .*data, backbone, supernet"),
        ("supernet.epochs=many", r"supernet\.epochs is 'many': input should be a valid integer"),
        ("supernet.epochs=2.5", r"supernet\.epochs is 2\.5: input should be a valid integer"),
        ("supernet.epochs=true", r"supernet\.epochs is True: input should be a number"),
        ("supernet.epochs=", r"supernet\.epochs is None: input should be a valid integer"),
        (
            "supernet.epochs=-1",
            r"supernet\.epochs is -1: input should be greater than or equal to 0",
        ),
        ("supernet.batch_size=0", r"supernet\.batch_size is 0: input should be greater than 0"),
        ("agent.recordings=0", r"agent\.recordings is 0: input should be greater than 0"),
        ("supernet.crop=0", r"supernet\.crop is 0: input should be greater than 0"),
        (
            "supernet.cutmix=1.5",
            r"supernet\.cutmix is 1\.5: input should be less than or equal to 1",
        ),
        ("supernet.crop=1.5", r"supernet\.crop is 1\.5: input should be less than or equal to 1"),
        (
            "supernet.learning_rate=.nan",
            r"supernet\.learning_rate is nan: input should be a finite number",
        ),
        ("supernet.flip=1", r"supernet\.flip is 1: input should be a valid boolean"),
        ("supernet.precision=int8", r"precision is 'int8': input should be 'auto', 'float32' or"),
        ("evaluation.budgets=0.5", r"evaluation\.budgets is 0\.5: input should be a valid tuple"),
        ("evaluation.budgets=[a]", r"evaluation\.budgets is 'a': input should be a valid number"),
        ("data.source=[a]", r"data\.source is \['a'\]: input should be a valid string"),
        ("supernet=3", r"setting supernet is 3: input should be a dictionary"),
        ("seed.x=3", r"setting seed is \{'x': 3\}: input should be a valid integer"),
        ("supernet.epochs", r"--set supernet\.epochs has no value"),
        ("supernet.epochs=[", r"supernet\.epochs: '\[' is not a value"),
    ],
)
def test_from_flags_bad_setting_is_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        _parse("--set", setting)


@pytest.mark.parametrize("text", ["a: [", "just words", "\tx: 1"])
def test_read_yaml_broken_file_is_named(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"settings file .*bad\.yaml"):
        read_yaml(str(tmp_path / "bad.yaml"))


def test_read_yaml_missing_file_names_the_presets():
    with pytest.raises(ConfigError, match=r"settings file nothing cannot be read .*tiny"):
        read_yaml("nothing")


def test_check_resumable_same_settings_passes(tmp_path):
    config = from_dict({"supernet": {"epochs": 3}})
    save(config, tmp_path)
    check_resumable(config, tmp_path)


def test_check_resumable_changed_setting_names_it_and_both_values(tmp_path):
    save(Config(), tmp_path)
    changed = from_dict({"agent": {"hidden": 999}})
    with pytest.raises(ConfigError, match=r"setting agent\.hidden is 999, but the run .* has \d+"):
        check_resumable(changed, tmp_path)


def test_check_resumable_setting_that_the_run_had_not_is_refused_even_at_its_default(tmp_path):
    saved = to_dict(Config())
    del saved["agent"]["seed"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(ConfigError, match=r"setting agent\.seed is 0, but the run .* has none"):
        check_resumable(Config(), tmp_path)


def test_check_resumable_setting_that_is_no_more_is_refused(tmp_path):
    saved = {**to_dict(Config()), "luck": 7}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(ConfigError, match=r"setting luck is unknown, but the run .* has 7"):
        check_resumable(Config(), tmp_path)


def test_check_resumable_every_setting_comes_back_as_it_was_saved(tmp_path):
    everything = {"data": {"source": "1e-3"}, "supernet": {"weight_decay": 1e-5, "crop": 1}}
    config = from_dict({**everything, "agent": {"penalties": [1, 2]}})
    save(config, tmp_path)
    check_resumable(config, tmp_path)


@pytest.fixture
def pinned(tmp_path):
    """Pins digests to a run in a folder."""

    def run(data, start=None, resume=True):
        config = from_dict({"data": {"source": "photos"}, "work": str(tmp_path)})
        pin(config, {"data.source": data, "backbone.pretrained": start}, resume=resume)

    return run


def test_pin_same_inputs_pass_and_others_are_refused_until_a_new_run(pinned):
    pinned("a", "b", resume=False)
    pinned("a", "b")
    with pytest.raises(ConfigError, match=r"data\.source is 'photos' as before, but what it names"):
        pinned("x", "b")
    with pytest.raises(ConfigError, match=r"setting backbone\.pretrained is None as before"):
        pinned("a", "x")
    pinned("x", resume=False)
    pinned("x")


def test_pin_of_an_older_run_takes_what_there_is_now_and_keeps_to_it(pinned, tmp_path):
    pinned("a")
    pinned("a", "b")  # a file, of which older runs recorded nothing
    with pytest.raises(ConfigError, match=r"setting backbone\.pretrained"):
        pinned("a", "c")
    with pytest.raises(ConfigError):
        pinned("x")
    assert set(read_yaml(str(tmp_path / "inputs.yaml"))) <= set(flatten(to_dict(Config())))


def test_check_resumable_other_threads_and_cache_pass(tmp_path):
    save(Config(), tmp_path)
    check_resumable(Config(threads=3, data=Data(cache="elsewhere")), tmp_path)


def test_check_resumable_no_run_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        check_resumable(Config(), tmp_path)

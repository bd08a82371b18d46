"""Tests of training/__main__.py: bad input is told in one sentence and leaves nothing behind."""

import json
import shutil

import pytest

import training.__main__ as module
from tests.training.support import fit_flags, run_training, save_pictures
from training.__main__ import main


@pytest.fixture
def data(tmp_path):
    return save_pictures(tmp_path / "data", train=6, test=2)


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must fail and gives the sentence it told."""

    def run(flags):
        capsys.readouterr()
        assert main([str(flag) for flag in flags]) == 1
        told = capsys.readouterr()
        (line,) = told.err.splitlines()
        assert line.startswith("error: ")
        assert told.out == ""
        left = {path.name for path in tmp_path.iterdir()}
        assert left <= {"data", "work", "cache", "report", "finished"}
        return line

    return run


def test_fit_unreadable_image_is_named(data, tmp_path, refused):
    (data / "train" / "dog" / "002.png").write_bytes(b"not an image")
    assert "dog/002.png cannot be read" in refused(fit_flags(data, tmp_path))


def test_fit_empty_class_is_named(data, tmp_path, refused):
    for file in (data / "train" / "emu").iterdir():
        file.unlink()
    assert "emu is empty" in refused(fit_flags(data, tmp_path))


def test_fit_one_class_only_says_so(data, tmp_path, refused):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            shutil.rmtree(data / split / name)
    assert "has one class only" in refused(fit_flags(data, tmp_path))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("supernet.epoch=3", "setting supernet.epoch is unknown"),
        ("backbone.name=lenet", "backbone 'lenet' is unknown"),
        ("backbone.image_size=2", "setting backbone"),
        ("agent.penalties=[0, 1]", "setting agent.penalties is 0"),
        ("agent.penalties=[2, 1]", "setting agent.penalties is [2.0, 1.0]"),
        ("agent.penalties=[1]", "setting agent.penalties is [1.0]"),
        ("agent.images=0", "setting agent.images is 0"),
        ("evaluation.budgets=[0.5, 40]", "setting evaluation.budgets is 40"),
        ("data.held_out=5000", "data.held_out is 5000"),
        ("supernet.shift=1", "setting supernet.shift is 1"),
        ("backbone.pretrained=nowhere.pt", "setting backbone.pretrained: nowhere.pt: "),
    ],
)
def test_fit_bad_setting_is_named(data, tmp_path, refused, setting, named):
    assert named in refused(fit_flags(data, tmp_path, setting))


def test_fit_no_supernet_for_a_plain_network_is_refused(data, tmp_path, refused):
    # It has no narrow paths yet that could be searched.
    (data / "plain.pt").touch()
    flags = fit_flags(data, tmp_path, "supernet.epochs=0", f"backbone.pretrained={data}/plain.pt")
    assert "setting supernet.epochs is 0" in refused(flags)


@pytest.mark.parametrize(("command", "told"), [("fit", "--resume"), ("report", "interrupted\n")])
def test_interrupted_command_says_how_to_go_on_if_it_can(command, told, monkeypatch, capsys):
    def interrupted(flags):
        raise KeyboardInterrupt

    monkeypatch.setitem(module._COMMANDS, command, interrupted)
    flags = ["bundle", "--data", "x"] if command == "report" else []
    assert main([command, *flags]) == 130
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "index"), [("--data", 1), ("--out", 3)])
def test_fit_missing_flag_is_named(data, tmp_path, refused, flag, index):
    flags = fit_flags(data, tmp_path)
    assert flags[index] == flag
    del flags[index : index + 2]
    assert f"{flag} is missing" in refused(flags)


def test_fit_missing_folder_is_named(tmp_path, refused):
    assert "nowhere' is neither a folder" in refused(fit_flags(tmp_path / "nowhere", tmp_path))


def test_fit_existing_bundle_is_not_touched(data, tmp_path, refused):
    flags = fit_flags(data, tmp_path)
    finished = tmp_path / "finished"
    finished.mkdir()
    flags[flags.index("--out") + 1] = str(finished)
    assert "finished exists: choose another" in refused(flags)
    assert list(finished.iterdir()) == []


def test_fit_bundle_that_could_not_be_written_is_told_at_once(data, tmp_path, refused):
    flags = fit_flags(data, tmp_path)
    flags[flags.index("--out") + 1] = "/proc/nope/bundle"
    assert "--out is /proc/nope/bundle, but nothing can be written" in refused(flags)
    assert not (tmp_path / "work").exists()


def test_fit_resume_without_a_run_says_so(data, tmp_path, refused):
    assert "nothing to resume" in refused([*fit_flags(data, tmp_path), "--resume"])


def test_fit_checkpoints_there_asks_for_resume(pictures, fitted, refused):
    flags = fit_flags(pictures, fitted)
    flags[flags.index("--out") + 1] = str(fitted / "other")
    assert "--resume" in refused(flags)
    assert not (fitted / "other").exists()


def test_fit_resume_with_changed_setting_names_it(pictures, fitted, refused):
    flags = fit_flags(pictures, fitted, "agent.hidden=7")
    flags[flags.index("--out") + 1] = str(fitted / "other")
    assert "setting agent.hidden is 7, but the run" in refused([*flags, "--resume"])


@pytest.mark.parametrize(
    ("most", "named"), [(100, "config.yaml"), (2000, "data cache"), (30_000, "supernet.pt")]
)
def test_fit_full_disk_names_what_cannot_be_written(
    data, tmp_path, refused, small_files, most, named
):
    with small_files(most):
        line = refused(fit_flags(data, tmp_path))
    assert named in line
    assert "cannot be written" in line
    assert "File too large" in line


def test_fit_full_disk_at_the_end_leaves_no_half_bundle(
    pictures, fitted, tmp_path, capsys, small_files
):
    for folder in ("work", "cache"):
        shutil.copytree(fitted / folder, tmp_path / folder)
    with small_files(20_000):
        assert main([*fit_flags(pictures, tmp_path), "--resume"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: bundle {tmp_path / 'bundle'} cannot be written: ")
    assert {path.name for path in tmp_path.iterdir()} == {"work", "cache"}


@pytest.mark.parametrize(
    ("command", "name"), [("evaluate", "evaluation.json"), ("compare", "compare.json")]
)
def test_measuring_writes_its_report_under_runs(
    command, name, pictures, fitted, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flags = ["--data", pictures, "--cache", fitted / "cache", "--budgets", 0.6, "--threads", 1]
    assert main([command, str(fitted / "bundle"), *map(str, flags)]) == 0
    report = json.loads((tmp_path / "runs" / "bundle" / name).read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_measuring_refuses_what_it_cannot_use(command, pictures, fitted, tmp_path, refused):
    bundle = fitted / "bundle"
    flags = ["--data", pictures, "--cache", fitted / "cache", "--out", tmp_path / "report"]
    assert "no-bundle" in refused([command, tmp_path / "no-bundle", *flags])
    assert "budget 1.5 is out of reach" in refused([command, bundle, *flags, "--budgets", "1.5"])
    flags[1] = tmp_path / "nowhere"
    assert "nowhere" in refused([command, bundle, *flags, "--budgets", "1"])
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("command", ["evaluate", "compare", "report", "calibrate"])
def test_measuring_refuses_at_once_what_it_could_not_write(command, pictures, fitted, refused):
    flags = ["--data", pictures, "--cache", fitted / "cache", "--out", "/proc/nope"]
    told = refused([command, fitted / "bundle", *flags])
    assert "--out is /proc/nope, but nothing can be written there" in told


def test_calibrate_full_disk_at_the_end_leaves_no_half_bundle(
    pictures, fitted, tmp_path, capsys, small_files
):
    out = tmp_path / "mended"
    flags = ["--data", str(pictures), "--cache", str(fitted / "cache"), "--out", str(out)]
    with small_files(20_000):
        assert main(["calibrate", str(fitted / "bundle"), *flags]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: bundle {out} cannot be")
    assert list(tmp_path.iterdir()) == []


def test_command_as_a_process_gives_the_code_and_one_line(data, tmp_path):
    done = run_training(*fit_flags(data, tmp_path, "supernet.epoch=3"), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: setting supernet.epoch is unknown")
    assert done.stderr.count("\n") == 1

"""Tests of training/files.py."""

import os

import pytest

from training.errors import CheckpointError, ConfigError
from training.files import check_out, write_atomic


def test_check_out_leaves_nothing_and_names_what_cannot_be_written(tmp_path):
    check_out(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "file", tmp_path / "file" / "b", tmp_path / "lost" / "b"):
        with pytest.raises(ConfigError, match=rf"--out is {out}, but nothing can be written there"):
            check_out(out)


def test_write_atomic_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]


def test_write_atomic_too_large_keeps_the_old_file(tmp_path, small_files):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    too_large = pytest.raises(CheckpointError, match=r"file cannot be written: File too large")
    with small_files(100), too_large:
        write_atomic(path, bytes(1000))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_write_atomic_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "folder").write_text("")
    with pytest.raises(CheckpointError, match=r"folder.file cannot be written"):
        write_atomic(tmp_path / "folder" / "file", b"x")

"""Fake trees of files stand for what containers show of their control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.cores import cpus

HAS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def tree(root: Path, cgroup: str, **files: str) -> Path:
    """Write /proc/self/cgroup, and files below /sys/fs/cgroup by their paths."""
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / (name if name.startswith("proc") else f"sys/fs/cgroup/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/\n", {"cpu.max": "50000 100000\n"}),
        ("0::/system.slice/rnp.service\n", {"system.slice/rnp.service/cpu.max": "9000 10000\n"}),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}),
        # As a container of version 1 sees it, which knows its group by the host's path.
        (
            "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "20000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        ),
    ],
)
def test_cpus_of_a_quota_below_one_core_are_one(
    tmp_path: Path, cgroup: str, files: dict[str, str]
) -> None:
    assert cpus(tree(tmp_path, cgroup, **files)) == 1


@pytest.mark.skipif(HAS < 2, reason="one core cannot be divided")
def test_cpus_of_a_quota_between_two_numbers_are_the_larger(tmp_path: Path) -> None:
    assert cpus(tree(tmp_path, "0::/\n", **{"cpu.max": "110000 100000"})) == 2


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}),
        ("0::/\n", {"cpu.max": "99900000 100000\n"}),
        ("0::/gone\n", {}),
        (
            "1:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        ),
        ("", {}),
    ],
)
def test_cpus_without_a_quota_that_binds_are_those_of_the_affinity(
    tmp_path: Path, cgroup: str, files: dict[str, str]
) -> None:
    assert cpus(tree(tmp_path, cgroup, **files)) == HAS


def test_cpus_where_there_are_no_control_groups_are_those_of_the_affinity(tmp_path: Path) -> None:
    assert cpus(tmp_path) == HAS

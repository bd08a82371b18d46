"""How many cores the process may use, which can be fewer than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

# In a control group of version 2, and of version 1: microseconds in each period, and the period's.
_V2, _V1 = ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def cpus(root: Path = Path("/")) -> int:
    """Cores by affinity, or fewer by a quota, such as a container's, rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Cores that the control groups allow: the process's own and those above it.

    A container may know its group by the host's path, while the uppermost that it sees is its own.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for part in (group, *group.parents):
            folder = root / "sys/fs/cgroup" / controllers / part
            files = (_read(folder / name) for name in (_V1 if controllers else _V2))
            numbers = " ".join(files).split()
            # There is no limit where the first is "max" or -1.
            if len(numbers) == 2 and numbers[0].isdecimal():
                yield int(numbers[0]) / int(numbers[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

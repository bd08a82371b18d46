"""Everything that is trained on a GPU, side by side: backbones of several seeds, and static rivals.

    python -m benchmarks.gpu_training --data DATA [--out DIR] [--config NAME] [--seeds N ...]
        [--fractions F ...] [--methods NAME ...] [--at-once N] [--set SETTING=VALUE ...]

A step of one training leaves a GPU idle most of the time, so several share it. Bundles go to
<out>/seed-N, static networks to <out>/plain and <out>/METHOD-F, and what each prints to a file
beside its folder. What is finished is left alone, what was begun is resumed. Then

    python -m training compare <out>/seed-*/… --data DATA --static <out>/*/static.json

Ends in one JSON line; the exit code is 1 if one of them failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from models.bundle import CARD
from training.starts import REPORT
from training.static import METHODS

PRUNED = tuple(method for method in METHODS if method != "plain")
SEARCHED = "searched"


class Trainings:
    """Runs commands of `python -m training`, each in a process of its own."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self._flags = flags
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def bundle(self, seed: int) -> bool:
        """Train a bundle."""
        name, folder = f"seed-{seed}", self._bundle(seed)
        work = self._flags.out / name / "work"
        command = ["fit", "--out", str(folder), "--seed", str(seed), "--set", f"work={work}"]
        return self._run(name, command, folder / CARD, work)

    def static(self, method: str, fraction: float | None = None) -> bool:
        """Train a static network, with the first seed.

        Those that are pruned start from the plain one; the widths of the method searched are those
        of the first bundle.
        """
        name = method if fraction is None else f"{method}-{fraction:g}"
        folder = self._flags.out / name
        command = ["static", "--method", method, "--out", str(folder)]
        command += [word for seed in self._flags.seeds[:1] for word in ("--seed", str(seed))]
        if fraction is not None:
            start = self._flags.out / "plain"
            command += ["--fraction", str(fraction), "--start", str(start)]
        if method == SEARCHED:
            command += ["--widths", str(self._bundle(self._flags.seeds[0]))]
        return self._run(name, command, folder / REPORT, folder)

    def _bundle(self, seed: int) -> Path:
        folder: Path = self._flags.out / f"seed-{seed}" / self._flags.config
        return folder

    def _run(self, name: str, command: list[str], finished: Path, work: Path) -> bool:
        """Run a command unless its result is there; whether it is there in the end."""
        if finished.exists():
            return True
        flags = self._flags
        command += ["--config", flags.config, "--data", flags.data]
        command += [word for setting in flags.settings for word in ("--set", setting)]
        if any((work / "checkpoints").glob("*.pt")):
            command.append("--resume")
        flags.out.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with (flags.out / f"{name}.log").open("ab") as log:
            program = [sys.executable, "-m", "training", *command]
            done = subprocess.run(program, stdout=log, stderr=log, check=False)
        self.seconds[name] = round(time.monotonic() - start, 1)
        told = "done" if done.returncode == 0 else f"failed, see {flags.out / name}.log"
        print(f"{name}: {told}, {self.seconds[name]:.0f} s", flush=True)
        if done.returncode:
            self.failed.append(name)
        return done.returncode == 0


def main() -> int:
    """Train all; 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="as for fit")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--config", default="cifar10-mcifarnet")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--fractions", type=float, nargs="*", default=[0.25, 0.125])
    parser.add_argument("--methods", nargs="*", default=list(PRUNED), choices=PRUNED)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    flags = parser.parse_args()
    if not flags.seeds:
        flags.methods = [method for method in flags.methods if method != SEARCHED]
    trainings = Trainings(flags)
    with ThreadPoolExecutor(flags.at_once) as pool:
        # First, as most others wait for it.
        plain = pool.submit(trainings.static, "plain") if flags.fractions else None
        found: list[Future[bool]] = [pool.submit(trainings.bundle, seed) for seed in flags.seeds]
        rivals = [(m, f) for f in flags.fractions for m in flags.methods if m != SEARCHED]
        searched = [(SEARCHED, f) for f in flags.fractions if SEARCHED in flags.methods]
        if plain and plain.result():
            found += [pool.submit(trainings.static, *rival) for rival in rivals]
            # Last, as the first bundle is waited for.
            if searched and found[0].result():
                found += [pool.submit(trainings.static, *rival) for rival in searched]
        for future in found:
            future.result()
    about = {"benchmark": "gpu_training", "config": flags.config, "seconds": trainings.seconds}
    print(json.dumps(about | {"failed": trainings.failed}))
    return 1 if trainings.failed else 0


if __name__ == "__main__":
    sys.exit(main())

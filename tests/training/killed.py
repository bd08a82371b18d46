"""A run of `fit` that is killed again and again. A script, because it kills its processes.

    python killed.py STAGE:SAVE … -- fit …

For each STAGE:SAVE a process runs the command and dies, by SIGKILL, when that stage is about to
save for the SAVE-th time in it: all since the save before is lost. From the second on they resume.
"""

import os
import signal
import sys

from training import fit
from training.__main__ import main
from training.checkpoint import Checkpoints


def die_at(point):
    stage, _, number = point.partition(":")
    left = int(number)
    save, write_bundle = Checkpoints.save, fit.write_bundle

    def count(name):
        nonlocal left
        left -= name == stage
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted_save(self, name, *args, **kwargs):
        count(name)
        save(self, name, *args, **kwargs)

    def counted_write(*args, **kwargs):
        count("bundle")
        return write_bundle(*args, **kwargs)

    Checkpoints.save, fit.write_bundle = counted_save, counted_write


if __name__ == "__main__":
    split = sys.argv.index("--")
    points, command = sys.argv[1:split], sys.argv[split + 1 :]
    for run, point in enumerate(points):
        process = os.fork()  # of a process that has computed nothing yet: imports are paid once
        if process == 0:
            die_at(point)
            os._exit(main(command + ["--resume"] * (run > 0)))
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"{point} was never reached")

"""What tests of several parts share."""

import atexit
import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile

import pytest

# All of this before anything that reads it is imported.
# Nothing that whoever runs the tests has set for a service or a client of theirs.
for name in list(os.environ):
    if name.upper().startswith(("RNP_", "OTEL_")) or name.upper().endswith("_PROXY"):
        del os.environ[name]
# Nor what libraries have kept, or were told, in their home.
_home = tempfile.mkdtemp(prefix="tests-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
for name in ("XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR"):
    os.environ[name] = os.path.join(_home, name.lower())
# How many threads torch has is kept between tests: some set one, and others would have had more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton's kernels run in its interpreter, unless TRITON_INTERPRET=0 sends them to a GPU. It is read
# when Triton is first imported, which torch may do.
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def small_files(monkeypatch):
    """`with small_files(100)`: no file may grow beyond 100 bytes, as on a disk that fills up."""
    # Python would leave cut-off bytecode beside the modules imported meanwhile.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    @contextlib.contextmanager
    def limited(most):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            yield
        finally:  # before pytest writes its own output, which may be a file
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return limited

"""What tests of several parts share."""

import contextlib
import os
import resource
import signal
import sys

import pytest

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

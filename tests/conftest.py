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


@pytest.fixture(scope="session", autouse=True)
def plain_environment(tmp_path_factory):
    """Nothing that whoever runs the tests has set for a service or a client of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.upper().startswith(("RNP_", "OTEL_")) or name.upper().endswith("_PROXY"):
                patch.delenv(name)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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

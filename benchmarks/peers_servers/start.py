"""How each server is set up, started and asked; this runs in our own environment."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.load.messages import Reader, read_index
from benchmarks.load.server import ROOT, Server, ServerError, free_port, running
from benchmarks.peers_servers.network import PREPROCESSING
from models.bundle import Bundle
from service.engines.onnx_builder import path_graph

PACKAGE = __package__
SERVERS = Path(__file__).parent


def read_list(body: bytes) -> dict[str, float]:
    """What BentoML answers."""
    return {"answer": float(json.loads(body)[0])}


def read_v2(body: bytes) -> dict[str, float]:
    """What MLServer answers."""
    return {"answer": float(json.loads(body)["outputs"][0]["data"][0])}


def _raw(content: bytes) -> bytes:
    return content


def _json(value: Callable[[str], Any]) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(value(base64.b64encode(content).decode())).encode()


def _v2(text: str) -> dict[str, Any]:
    kind = {"datatype": "BYTES", "parameters": {"content_type": "base64"}}
    return {"inputs": [{"name": "image", "shape": [1, 1], "data": [text]} | kind]}


@dataclass(frozen=True)
class Peer:
    """How a server is started and asked.

    Attributes:
        command: after its environment's Python; {port} and {scratch} are filled in.
        body: an image file as the body of a request.
        own: whether it has an environment of its own.
    """

    name: str
    command: Sequence[str]
    read: Reader
    ready: str
    path: str = "/classify"
    body: Callable[[bytes], bytes] = _raw
    content_type: str = "application/json"
    own: bool = True

    def python(self, venvs: Path) -> Path:
        """Of its environment."""
        return venvs / self.name / "bin" / "python" if self.own else Path(sys.executable)


_BENTOML = f"{PACKAGE}.with_bentoml:FullNetwork"
_MLSERVER = "from mlserver.cli import main; main()"

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "fastapi",
            ("-m", f"{PACKAGE}.with_fastapi"),
            read_index,
            "/ready",
            content_type="image/png",
            own=False,
        ),
        Peer(
            "litserve",
            ("-m", f"{PACKAGE}.with_litserve"),
            read_index,
            "/health",
            body=_json(lambda text: {"image_data": text}),
        ),
        Peer(
            "bentoml",
            ("-m", "bentoml", "serve", _BENTOML, "--host", "127.0.0.1", "--port", "{port}"),
            read_list,
            "/readyz",
            body=_json(lambda text: {"images": [text]}),
        ),
        Peer(
            "mlserver",
            ("-c", _MLSERVER, "start", "{scratch}"),
            read_v2,
            "/v2/models/full/ready",
            path="/v2/models/full/infer",
            body=_json(_v2),
        ),
        Peer(
            "ray",
            ("-m", f"{PACKAGE}.with_ray"),
            read_index,
            "/-/healthz",
            content_type="image/png",
        ),
    )
}


@dataclass(frozen=True)
class Share:
    """What a peer gets: processes, ONNX Runtime's threads in each, the most images of a batch."""

    workers: int
    threads: int
    batch: int


def set_up(peers: Sequence[Peer], venvs: Path) -> dict[str, str]:
    """Make the environments; why each that failed did."""
    failed = {}
    for peer in peers:
        if not peer.own:
            continue
        print(f"{peer.name}: setting up {venvs / peer.name}", flush=True)
        wanted = SERVERS / f"requirements-{peer.name}.txt"
        commands = (
            [sys.executable, "-m", "venv", str(venvs / peer.name)],
            [
                str(peer.python(venvs)),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--requirement",
                str(wanted),
            ],
        )
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                failed[peer.name] = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                print(f"{peer.name}: NOT INSTALLED: {failed[peer.name]}")
                break
    return failed


def write_network(bundle: Bundle, scratch: Path) -> None:
    """The plain graph of the full network, and how to preprocess."""
    card = bundle.card
    path_graph(bundle, [card.backbone.groups] * card.backbone.n_layers).write(scratch)
    (scratch / PREPROCESSING).write_text(json.dumps(asdict(card.preprocessing)))


def write_mlserver_settings(scratch: Path, port: int, share: Share) -> None:
    """MLServer reads files; 5 ms is what a batch waits to fill, as it has no batches at 0."""
    settings: dict[str, Any] = {
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
    }
    settings |= {"host": "127.0.0.1", "parallel_workers": share.workers, "debug": False}
    (scratch / "settings.json").write_text(json.dumps(settings))
    model: dict[str, Any] = {
        "name": "full",
        "implementation": f"{PACKAGE}.with_mlserver.FullNetwork",
    }
    model |= {"max_batch_size": share.batch, "max_batch_time": 0.005}
    (scratch / "model-settings.json").write_text(json.dumps(model))


@contextmanager
def served(peer: Peer, bundle: Bundle, venvs: Path, share: Share) -> Iterator[Server]:
    """A peer's server, ready for work.

    Raises:
        ServerError: it is not installed, or does not start.
    """
    if not peer.python(venvs).exists():
        raise ServerError(f"{peer.python(venvs)} is not there: run with --setup first")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        write_network(bundle, scratch)
        if peer.name == "mlserver":
            write_mlserver_settings(scratch, port, share)
        values = {"network": folder, "port": port} | asdict(share)
        variables = {f"PEER_{name.upper()}": str(value) for name, value in values.items()}
        # What it needs of ours, and no reports to anybody.
        variables |= {"PYTHONPATH": str(ROOT), "BENTOML_DO_NOT_TRACK": "True"}
        command = [part.format(port=port, scratch=folder) for part in peer.command]
        with running([str(peer.python(venvs)), *command], port, variables) as server:
            server.wait_ready(peer.ready)
            yield server

"""A tiny bundle, a plain fake engine, and a real server on loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from models.bundle import tensor_shapes, write_bundle
from models.card import CalibrationPoint, Card, TestPoint
from models.compute import MacTable
from models.config import AgentConfig, BackboneConfig, ConvConfig
from models.preprocess import Preprocessing
from service.connections import ServerConfig
from service.engines.base import Result

SIZE, GROUPS = 8, 4
PATHS = ((1, 1, 1), (2, 1, 2), (3, 4, 3), (4, 4, 4))
BY_PATH = AgentConfig("paths", hidden=8, paths=PATHS)
BY_LAYER = AgentConfig("priced", encoding=4, hidden=8)


class FakeEngine:
    """Chooses paths by penalty and cap, and the class by the image's mean, without a network.

    After the first path it runs the second, or, at a low penalty and without a cap, the last.

    Attributes:
        started: set when a batch begins.
        gate: a batch waits for it.
    """

    name = "fake"

    def __init__(self, table: MacTable, classes: int) -> None:
        self.table, self.classes = table, classes
        self.started, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.failure: Exception | None = None

    def run(self, images: np.ndarray, penalty: np.ndarray, cap: np.ndarray) -> Result:
        self.batches.append(len(images))
        self.started.set()
        self.gate.wait(10)
        if self.failure:
            raise self.failure
        plain = (penalty == 0) & (cap >= 1)
        widths = np.where(plain[:, None], GROUPS, PATHS[1]).astype(np.int64)
        widths[cap < 0.5] = PATHS[0]
        first, second, *_, whole = self.table.looks
        macs = np.where(cap < 0.5, first, first + second)
        most = (penalty < 0.05) & (cap >= (first + whole) / self.table.full)
        widths[most], macs[most] = GROUPS, first + whole
        macs[plain] = self.table.full
        classes = np.arange(self.classes, dtype=np.float32)
        logits = -np.abs(classes - images.mean(axis=(1, 2, 3), dtype=np.float32)[:, None])
        return Result(logits, widths, macs)


def make_card(name: str = "tiny", agent: AgentConfig = BY_PATH) -> Card:
    layers = tuple(
        ConvConfig(f"conv{i}", f"norm{i}", fan_in, 16) for i, fan_in in enumerate((3, 16, 16))
    )
    backbone = BackboneConfig("tiny", SIZE, layers, (3,), ("head",), GROUPS)
    points = (CalibrationPoint(2.0, 0.2, 0.5), CalibrationPoint(0.01, 0.99, 0.9))
    return Card(
        name=name,
        labels=("cat", "dog", "owl"),
        backbone=backbone,
        agent=agent,
        preprocessing=Preprocessing(SIZE, SIZE, (0.5,) * 3, (0.25,) * 3),
        calibration=points,
        temperature=0.5,
        test=(TestPoint(0.5, 0.51, 0.1, 0.8), TestPoint(1.0, 1.0, 0.0, 0.9)),
    )


def add_bundle(directory: Path, card: Card, child: str | None = None, seed: int = 0) -> None:
    """Write a bundle of random weights into a directory, by default named as the card says."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in tensor_shapes(card.backbone, card.agent).items()
    }
    write_bundle(directory / (child or card.name), card, tensors)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(colour: int = 128, size: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    return encode(Image.new("RGB", size, (colour,) * 3))


def client_of(url: httpx.URL | str, timeout: float = 20) -> httpx.Client:
    """A client without the certificates of TLS, to read which takes longer than to ask."""
    return httpx.Client(base_url=url, trust_env=False, verify=False, timeout=timeout)


@contextmanager
def serve(app: FastAPI, *, ready: bool = True) -> Iterator[httpx.Client]:
    """Run an app on a free port of loopback, as `python -m service` does, and wait for it."""
    server = uvicorn.Server(ServerConfig(app, app.state.service.settings))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with client_of(url) as client:
                if ready:
                    wait_ready(client)
                else:
                    wait_until(lambda: server.started)
                yield client
        finally:
            server.should_exit = True
            thread.join()


def wait_ready(client: httpx.Client, seconds: float = 10) -> None:
    def ready() -> bool:
        try:
            return client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(ready, seconds)


def samples(client: httpx.Client, name: str, **labels: str) -> list[Sample]:
    """The series of /metrics that have this name and these labels, among others."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    every = (sample for family in families for sample in family.samples if sample.name == name)
    return [sample for sample in every if labels.items() <= sample.labels.items()]


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The value of one of them, or their sum."""
    return sum(sample.value for sample in samples(client, name, **labels))


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} is still false after {seconds} s")
        time.sleep(0.01)

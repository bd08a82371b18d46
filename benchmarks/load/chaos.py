"""What may go wrong with a server, done to it under load; each item ends in a verdict."""

from __future__ import annotations

import contextlib
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load.arrivals import arrivals, poisson
from benchmarks.load.aside import every
from benchmarks.load.generator import Plan, drive, driving
from benchmarks.load.images import Files
from benchmarks.load.messages import post, read_classification
from benchmarks.load.outcome import Outcome, percentiles
from benchmarks.load.server import Server, ServerError, free_port, of_service, running, service

# How long a broken start may take to end; what a file may hold on a full disk.
PATIENCE_S, DISK_BYTES = 30.0, 2**18
# How often a bundle is loaded anew; how long a stopping service goes on answering whoever asks.
RELOADS, LAME_DUCK_S, MARGIN_S = 50, 1.0, 0.3
# Clients that misbehave, and how often slow ones send a byte.
VANISHING, SLOW, DRIP_S = 200, 50, 0.2


@dataclass(frozen=True)
class Verdict:
    """Whether an item went as it should, in a sentence and in numbers."""

    item: str
    good: bool
    said: str
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """What is served, by how many processes, and sent: requests a second for some seconds."""

    bundle: Path
    files: Files
    rate: float
    seconds: float
    workers: int = 1

    def service(
        self, port: int | None = None, **settings: object
    ) -> AbstractContextManager[Server]:
        """The service, ready for work."""
        return service(self.bundle, port, workers=self.workers, **settings)

    def plan(self, port: int) -> Plan:
        """Poisson arrivals of images."""
        requests = [post("/classify", file, "image/png") for file in self.files.contents]
        times = arrivals(poisson(self.seconds, 1.0), self.rate, seed=0)
        return Plan(Server.host, port, requests, read_classification, times=times)


def killed(case: Case) -> Verdict:
    """Kill −9 under load and start at once on the same port; then all is answered again."""
    port = free_port()
    with ExitStack() as stack:
        server = stack.enter_context(case.service(port))
        load = stack.enter_context(driving(case.plan(port)))
        time.sleep(case.seconds / 3)
        dead = time.perf_counter()
        server.kill()
        stack.enter_context(case.service(port))
        ready = time.perf_counter()
        outcome = load.result()
    due, lost = outcome.columns["due"] + outcome.start, ~outcome.ok
    after = int((lost & (due > ready)).sum())
    said = (
        f"ready {ready - dead:.2f} s after the kill; {lost.sum()} of {len(outcome)} requests were "
        f"lost, {after} of them due after that"
    )
    # If no request was due after it, nothing was shown.
    good = not after and bool((due > ready).any())
    values = {"ready_s": ready - dead, "lost": int(lost.sum()), "lost_after": after}
    return Verdict("kill -9", good, said, values)


def stopped(case: Case) -> Verdict:
    """SIGTERM under load: all that comes while it says that it leaves is answered; exit code 0."""
    with case.service(lame_duck_s=LAME_DUCK_S) as server:
        with driving(case.plan(server.port)) as load:
            time.sleep(case.seconds / 3)
            asked = time.perf_counter()
            server.process.terminate()
            outcome = load.result()
        code = server.process.wait(PATIENCE_S)
    due = outcome.columns["due"] + outcome.start
    # What is due at the very end may be sent after it.
    leaving_s = LAME_DUCK_S - MARGIN_S
    before, leaving = due <= asked, (due > asked) & (due <= asked + leaving_s)
    lost = int((~outcome.ok & (before | leaving)).sum())
    said = (
        f"{lost} of {before.sum()} due before the signal and {leaving.sum()} due in the "
        f"{leaving_s:g} s after it were not answered; exit code {code}"
    )
    good = not lost and code == 0 and bool(before.any() and leaving.any())
    return Verdict("SIGTERM", good, said, {"lost": lost})


def reloaded(case: Case) -> Verdict:
    """The bundle is loaded anew again and again under load: no request is lost."""
    with case.service() as server, ThreadPoolExecutor(1) as pool:
        path = f"/models/{case.bundle.name}"
        reloads = pool.submit(lambda: [server.ask("PUT", path)[0] for _ in range(RELOADS)])
        outcomes = []
        while not reloads.done():
            outcomes.append(drive(case.plan(server.port)))
    loaded = reloads.result().count(200)
    lost, sent = sum(int((~one.ok).sum()) for one in outcomes), sum(map(len, outcomes))
    said = f"loaded anew {loaded} of {RELOADS} times; {lost} of {sent} requests were not answered"
    return Verdict("reloads", not lost and loaded == RELOADS, said, {"lost": lost})


def vanishing(case: Case) -> Verdict:
    """Clients that hang up amid their body, or before the answer: others do not notice."""
    request = case.plan(0).requests[0]
    with case.service() as server:
        with driving(case.plan(server.port)) as load:
            for index in range(VANISHING):
                with socket.create_connection((server.host, server.port)) as client:
                    client.sendall(request[: len(request) // 2] if index % 2 else request)
                time.sleep(case.seconds / 2 / VANISHING)
            outcome = load.result()
        # A place in a queue, in any of its processes.
        held = _settled(lambda: server.metric("rnp_queue_depth") == 0)
    said = f"{VANISHING} hung up; {_lost(outcome)}; " + (
        "the queue is empty after it" if held else "places of the queue are held for ever"
    )
    return Verdict("vanishing clients", bool(outcome.ok.all()) and held, said)


def slow(case: Case) -> Verdict:
    """Clients that send a byte at a time: others do not wait for them."""
    request = case.plan(0).requests[0]
    with case.service() as server:
        calm = drive(case.plan(server.port))
        with driving(case.plan(server.port)) as load, _dripping(server, request) as clients:
            outcome = load.result()
    before, after = (percentiles(run.latency_ms[run.ok])[2] for run in (calm, outcome))
    cut = SLOW - len(clients)
    said = (
        f"{SLOW} slow bodies: p95 of the others {before:.1f} → {after:.1f} ms, {_lost(outcome)}; "
        f"the service hung up on {cut} of the slow within {case.seconds:g} s"
    )
    values = {"p95_before_ms": before, "p95_ms": after, "hung_up": cut}
    # Twice, and what a busy machine adds.
    good = bool(outcome.ok.all()) and after < 2 * before + 20
    return Verdict("slow bodies", good, said, values)


def full_cache(case: Case) -> Verdict:
    """The cache's file system is full: served without it, under load too."""
    with tempfile.TemporaryDirectory() as cache:
        tiny = f'mount -t tmpfs -o size=64k none "{cache}" && exec "$0" -m service'
        port = free_port()
        variables = of_service(case.bundle, port, {"cache_dir": cache, "workers": case.workers})
        command = ["unshare", "--mount", "--map-root-user", "sh", "-c", tiny, sys.executable]
        try:
            with running(command, port, variables) as server:
                server.wait_ready("/readyz", PATIENCE_S)
                warned = "are not kept" in server.log()
                outcome = drive(case.plan(port))
        except (OSError, ServerError) as error:
            return Verdict("full cache", False, f"NOT RUN, or not ready: {error}".strip())
    said = f"ready; {_lost(outcome)}; the log {'warns' if warned else 'says nothing'}"
    return Verdict("full cache", bool(outcome.ok.all()) and warned, said)


def full_disk(case: Case) -> Verdict:
    """No file can grow, anywhere: it does not start and says why, and starts once there is room."""
    with tempfile.TemporaryDirectory() as cache:
        port = free_port()
        variables = of_service(case.bundle, port, {"cache_dir": cache, "workers": case.workers})
        command = [sys.executable, "-B", "-m", "service"]
        with running(command, port, variables, _fill_disk) as server:
            ended = _settled(lambda: server.process.poll() is not None)
            code, last = server.process.poll(), _last(server)
        with case.service(cache_dir=cache) as server:
            again = _answered(case, server)
    said = f"exit code {code}, {last!r}; started again with room, {again:.0%} are answered"
    good = ended and code == 1 and last.startswith("error: ") and again == 1
    return Verdict("full disk", good, said)


def corrupted(case: Case) -> Verdict:
    """A weight's byte is flipped, a card cut off: the service does not start, and says why."""
    said = [
        _start_broken(case.bundle, "model.safetensors", _flip),
        _start_broken(case.bundle, "bundle.json", lambda content: content[: len(content) // 2]),
    ]
    return Verdict("corrupted bundle", all(good for good, _ in said), "; ".join(s for _, s in said))


def _start_broken(bundle: Path, name: str, damage: Callable[[bytes], bytes]) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / bundle.name
        shutil.copytree(bundle, copy)
        copy.chmod(0o755)
        (copy / name).chmod(0o644)
        (copy / name).write_bytes(damage((copy / name).read_bytes()))
        port = free_port()
        with running([sys.executable, "-m", "service"], port, of_service(copy, port, {})) as server:
            ended = _settled(lambda: server.process.poll() is not None)
            code, last = server.process.poll(), _last(server).replace(scratch, "…")
    return ended and code == 1 and last.startswith("error: "), f"{name}: exit code {code}, {last!r}"


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _fill_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_BYTES, DISK_BYTES))


def _answered(case: Case, server: Server) -> float:
    """Share of a few requests that are answered."""
    plan = Case(case.bundle, case.files, rate=20, seconds=1).plan(server.port)
    return float(drive(plan).ok.mean())


@contextmanager
def _dripping(server: Server, request: bytes) -> Iterator[list[socket.socket]]:
    """Slow clients while the context lasts, half of them from the head on; those still there."""
    head = request.index(b"\r\n\r\n") + 4
    clients: list[socket.socket] = []
    places = {}
    for index in range(SLOW):
        client = socket.create_connection((server.host, server.port), timeout=5)
        places[client] = head if index % 2 else 0
        client.sendall(request[: places[client]])
        clients.append(client)

    def drip() -> None:
        for client in list(clients):
            try:
                client.sendall(request[places[client] : places[client] + 1])
                places[client] += 1
            except OSError:
                clients.remove(client)

    try:
        with every(DRIP_S, drip):
            yield clients
    finally:
        for client in places:
            client.close()


def _lost(outcome: Outcome) -> str:
    return f"{int((~outcome.ok).sum())} of {len(outcome)} others were not answered"


def _settled(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.perf_counter() + PATIENCE_S
    while time.perf_counter() < deadline:
        with contextlib.suppress(OSError):
            if condition():
                return True
        time.sleep(0.05)
    return False


def _last(server: Server) -> str:
    """The last line of what a server said."""
    lines = server.log().strip().splitlines()
    return lines[-1] if lines else ""


ITEMS = {
    "kill": killed,
    "stop": stopped,
    "reload": reloaded,
    "vanishing": vanishing,
    "slow": slow,
    "cache": full_cache,
    "disk": full_disk,
    "bundle": corrupted,
}

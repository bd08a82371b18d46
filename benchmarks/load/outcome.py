"""What became of the requests of a run: counts, percentiles and shares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Seconds since the start when a request was due, sent and done; HTTP status, 0 for a broken
# connection, −1 for one given up; index of the image and of the class answered; 1 for those that
# waited for a connection, and for those whose deadline the service said at once it cannot keep.
COLUMNS = (
    "due",
    "waited",
    "sent",
    "done",
    "status",
    "unreachable",
    "image",
    "answer",
    "fraction",
    "decode_ms",
    "inference_ms",
    "total_ms",
)
OK, REFUSED, LATE = 200, 429, 504
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Outcome:
    """All requests of a run.

    Attributes:
        columns: (N,) float64 each, see `COLUMNS`; NaN where there is nothing to say.
        start: the clock `time.perf_counter` when it began.
        processor_s: that the generator itself took.
    """

    columns: dict[str, Floats]
    start: float
    processor_s: float

    def __len__(self) -> int:
        return len(self.columns["due"])

    @cached_property
    def latency_ms(self) -> Floats:
        """From when a request was *due*: what waits in the generator, waits because of the server.

        Otherwise a server that stalls would also stop the clock of all that come meanwhile.
        """
        return (self.columns["done"] - self.columns["due"]) * 1e3

    @property
    def lag_ms(self) -> tuple[float, ...]:
        """Percentiles of how late requests were sent, those left out that had to wait."""
        sent = (self.columns["sent"] - self.columns["due"])[np.isnan(self.columns["waited"])]
        return percentiles(sent[~np.isnan(sent)] * 1e3)

    @property
    def ok(self) -> Mask:
        """(N,) which were answered with a class."""
        return np.equal(self.columns["status"], OK)

    def lasted_s(self, seconds: float) -> float:
        """Until the last answer, `seconds` at least: what is given up would add its patience."""
        return float(self.columns["done"][self.ok].max(initial=seconds))


@dataclass(frozen=True)
class Summary:
    """A run, or a part of one, in numbers; a percentile or mean of nothing is NaN.

    Attributes:
        offered, answered: requests a second; what is refused or late is not answered.
        within: share of all requests answered within the target, from when they were due.
        refused, late, errors: counts of 429, of 504, and of all else that is no answer.
        overhead_ms: median of total − decode − inference, as the server times itself.
        accuracy: share of the answers that name the right class.
    """

    requests: int
    offered: float
    answered: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    within: float
    refused: int
    late: int
    errors: int
    fraction: float
    accuracy: float
    overhead_ms: float

    @property
    def lost(self) -> int:
        """How many requests were not answered."""
        return self.refused + self.late + self.errors


def summarise(
    outcome: Outcome,
    labels: npt.NDArray[np.int64],
    seconds: float,
    target_ms: float,
    part: Mask | None = None,
) -> Summary:
    """Sum up the requests of a part.

    Args:
        labels: the class of each image.
        seconds: that the part lasted.
        part: (N,) which requests; absent, all.
    """
    part = np.ones(len(outcome), np.bool_) if part is None else part
    columns = {name: values[part] for name, values in outcome.columns.items()}
    ok, latency = outcome.ok[part], outcome.latency_ms[part]
    status = columns["status"]
    refused, late = int((status == REFUSED).sum()), int((status == LATE).sum())
    right = columns["answer"][ok] == labels[columns["image"][ok].astype(int)]
    own = columns["total_ms"] - columns["decode_ms"] - columns["inference_ms"]
    p50, p90, p95, p99 = percentiles(latency[ok])
    return Summary(
        requests=len(ok),
        offered=len(ok) / seconds,
        answered=float(ok.sum()) / seconds,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        within=_mean(ok & (latency <= target_ms)),
        refused=refused,
        late=late,
        errors=len(ok) - int(ok.sum()) - refused - late,
        fraction=_mean(columns["fraction"][ok]),
        accuracy=_mean(right),
        overhead_ms=percentiles(own[ok])[0],
    )


def percentiles(values: Floats) -> tuple[float, ...]:
    """Those of `PERCENTILES`, each a value that occurred; NaN of nothing."""
    if not len(values):
        return (np.nan,) * len(PERCENTILES)
    return tuple(float(v) for v in np.percentile(values, PERCENTILES, method="inverted_cdf"))


@dataclass(frozen=True)
class Course:
    """A run over time, (T,) each.

    Attributes:
        seconds: middles of the steps.
        offered, answered: a second, of requests that were due then, and of answers that came then.
        p95_ms: of the answers to those due. within: share of those due that were answered within
            the target. fraction: mean compute of their answers.
    """

    seconds: Floats
    offered: Floats
    answered: Floats
    p95_ms: Floats
    within: Floats
    fraction: Floats


def over_time(outcome: Outcome, seconds: float, step_s: float, target_ms: float) -> Course:
    """A run in steps of `step_s`; what is not known of a step is NaN."""
    edges = np.arange(0, seconds + step_s / 2, step_s)
    due, ok, latency = outcome.columns["due"], outcome.ok, outcome.latency_ms
    place = np.digitize(due, edges) - 1
    steps = [place == number for number in range(len(edges) - 1)]
    fraction = outcome.columns["fraction"]
    return Course(
        seconds=edges[:-1] + step_s / 2,
        offered=np.histogram(due, edges)[0] / step_s,
        answered=np.histogram(outcome.columns["done"][ok], edges)[0] / step_s,
        p95_ms=np.array([percentiles(latency[step & ok])[2] for step in steps]),
        within=np.array([_mean((ok & (latency <= target_ms))[step]) for step in steps]),
        fraction=np.array([_mean(fraction[step & ok]) for step in steps]),
    )


def _mean(values: npt.NDArray[np.float64] | Mask) -> float:
    return float(values.mean()) if len(values) else float("nan")

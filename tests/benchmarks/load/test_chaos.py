from __future__ import annotations

import pytest

from benchmarks.load.chaos import held_places
from benchmarks.load.server import ServerError

HEAD = """# HELP rnp_queue_depth Images that hold a place in the queue
# TYPE rnp_queue_depth gauge
"""


@pytest.mark.parametrize(
    ("lines", "places"),
    [
        ("rnp_queue_depth 3.0\nrnp_decode_queue_depth 9.0", 3),
        ('rnp_queue_depth{process="0"} 0.0\nrnp_queue_depth{process="1"} 2.0', 2),
        ('rnp_queue_depth{process="1"} 0.0\nrnp_decode_queue_depth{process="1"} 9.0', 0),
    ],
)
def test_held_places_are_those_of_all_processes(lines: str, places: float) -> None:
    assert held_places(f"{HEAD}{lines}\n") == places


def test_held_places_of_metrics_that_say_nothing_are_not_none() -> None:
    with pytest.raises(ServerError, match="nothing of a queue"):
        held_places(HEAD)

"""The budget of one model that follows the load: down at once, back up slowly.

The planner says before every batch what the time allows. A single batch never gets more than that;
the budget in force goes there in tenths of a second, and returns over seconds, so that
it does not swing with every burst.
"""

from __future__ import annotations

import logging
import math

from service.budget import Auto

logger = logging.getLogger(__name__)

# Seconds in which the budget covers most of its way, down and up.
_DOWN_S, _UP_S = 0.3, 4.0
# Nearer than this it has arrived.
_THERE = 0.01
# The share of requests that may miss the target, and how much of it is aimed at.
_LATE = 0.003
_AIM = (0.3, 0.9)
_AIM_STEP = 0.03
# A change is worth a line in the log.
_LOGGED_STEP, _LOGGED_S = 0.05, 1.0


class Governor:
    """Follows the load of one model in the auto mode.

    Attributes:
        value: the most that any request may be given, as a share of the full MACs.

    Args:
        best: what the model is best at, see `Auto.at_rest`.
    """

    def __init__(self, model: str, best: float = 1.0) -> None:
        self._model, self._best = model, best
        self.value = 1.0
        self._at = -math.inf
        self._aim, self._target_s = _AIM[1], 0.0
        self._logged, self._logged_at = best, -math.inf

    def aim_s(self, auto: Auto) -> float:
        """Seconds to plan for: less than the target, and less still where it was missed."""
        self._turn_to(auto)
        return self._aim * auto.target_s

    def follow(self, auto: Auto, allowed: float, now: float) -> float:
        """Take note of what time allows, and return the most that a batch may spend.

        Args:
            allowed: share of the full MACs.
            now: by `time.perf_counter`.
        """
        allowed = min(max(allowed, auto.floor), auto.most)
        self._approach(auto, allowed, now)
        return min(allowed, self.value)

    def in_force(self, auto: Auto, now: float, *, idle: bool) -> float:
        """The budget of a request that names none.

        Where nothing waits it goes on rising though no batch is planned.
        """
        if idle:
            self._approach(auto, auto.most, now)
        return self._in_force(auto)

    def answered(self, auto: Auto, seconds: float) -> None:
        """See how long a request took, and aim lower if too many are late."""
        self._turn_to(auto)
        late = seconds > auto.target_s
        self._aim *= math.exp(_AIM_STEP * (_LATE - late))
        self._aim = min(max(self._aim, _AIM[0]), _AIM[1])

    def _turn_to(self, auto: Auto) -> None:
        """What was learnt of one target says nothing of another."""
        if auto.target_s != self._target_s:
            self._aim, self._target_s = _AIM[1], auto.target_s

    def _in_force(self, auto: Auto) -> float:
        return min(max(self.value, auto.floor), auto.at_rest(self._best))

    def _approach(self, auto: Auto, allowed: float, now: float) -> None:
        scale = _DOWN_S if allowed < self.value else _UP_S
        self.value += (allowed - self.value) * -math.expm1(-max(now - self._at, 0) / scale)
        if abs(allowed - self.value) < _THERE:
            self.value = allowed
        self._at = max(now, self._at)
        in_force = self._in_force(auto)
        if abs(in_force - self._logged) >= _LOGGED_STEP and now - self._logged_at >= _LOGGED_S:
            logger.info(
                "budget follows the load",
                extra={
                    "model": self._model,
                    "budget": round(in_force, 3),
                    "before": round(self._logged, 3),
                },
            )
            self._logged, self._logged_at = in_force, now

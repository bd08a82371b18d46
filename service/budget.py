"""The budget in force: what a request gets that names none."""

from __future__ import annotations

from typing import Literal


class Budget:
    """A share of the full network's MACs, the same for every request until it is set anew.

    A controller that follows the load only has to call `set`.
    """

    mode: Literal["fixed"] = "fixed"

    def __init__(self, value: float) -> None:
        self._value = value

    @property
    def value(self) -> float:
        """In (0, 1]."""
        return self._value

    def set(self, value: float) -> None:
        """Put a budget in (0, 1] in force, from the next request on."""
        self._value = value

    def of(self, min_fraction: float) -> float:
        """The budget in force for a model that cannot spend less than `min_fraction`."""
        return max(self._value, min_fraction)

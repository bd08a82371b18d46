"""What the service takes and answers, as the documentation at /docs shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from service.limits import BudgetBy

MAX_DEADLINE_MS = 600_000

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class ClassifyQuery(BaseModel):
    """The query of `POST /classify`."""

    model_config = ConfigDict(extra="forbid")

    budget: Share | None = Field(
        None, description="mean share of the full MACs to spend; absent: the budget in force"
    )
    cap: Share | None = Field(
        None, description="share of the full MACs that no image exceeds; absent: no limit"
    )
    deadline_ms: float | None = Field(
        None,
        gt=0,
        le=MAX_DEADLINE_MS,
        allow_inf_nan=False,
        description="milliseconds from the headers of the request to its answer; the largest "
        "budget, up to `budget`, that will make it is chosen",
    )
    top_k: int = Field(5, ge=1, description="predictions, most probable first")
    model: str | None = Field(None, description="name of a bundle; absent: the default one")


# The parts of an answer need no check, without which they are made in a third of the time.
@dataclass(slots=True)
class Prediction:
    """One class and its probability, calibrated on images that training did without."""

    label: str
    index: int
    probability: float


@dataclass(slots=True)
class Compute:
    """What an image cost; 1 MAC = 2 FLOPs."""

    macs: Annotated[int, Field(description="computed, the agent included")]
    flops: int
    fraction: Annotated[float, Field(description="macs / full_macs")]
    full_macs: Annotated[int, Field(description="of the plain backbone")]
    agent_macs: Annotated[
        int, Field(description="spent on choosing the path, earlier paths included")
    ]
    widths: Annotated[
        list[int], Field(description="groups computed per layer, along the last path")
    ]
    groups: Annotated[int, Field(description="groups that a layer has")]


@dataclass(slots=True)
class Timing:
    """Milliseconds; `inference` is that of the whole batch."""

    decode: float
    queue: float
    inference: float
    total: float


@dataclass(slots=True)
class Classification:
    """The answer for one image."""

    model: str
    predictions: list[Prediction]
    budget: float
    budget_by: Annotated[
        BudgetBy,
        Field(
            description="who set it: the request, the service's fixed budget in force, the auto "
            "mode (`load`, also at rest), or the deadline"
        ),
    ]
    cap: Annotated[float | None, Field(description="with a deadline no more than what time allows")]
    compute: Compute
    timing_ms: Timing
    request_id: str


class ErrorBody(BaseModel):
    """A refusal: a sentence for people, a code word for programs."""

    error: str
    code: str


class Classifications(BaseModel):
    """The answers for the parts of a multipart body, in their order."""

    results: list[Classification | ErrorBody]


class FixedBudget(BaseModel):
    """A budget that stays until it is set anew."""

    model_config = ConfigDict(extra="forbid", strict=True)

    mode: Literal["fixed"] = "fixed"
    budget: Share


class AutoBudget(BaseModel):
    """A budget that follows the load."""

    model_config = ConfigDict(extra="forbid", strict=True)

    mode: Literal["auto"]
    target_p95_ms: float = Field(
        ge=0.01, le=60_000, allow_inf_nan=False, description="of whole requests, at least 95 in 100"
    )
    floor: Share = Field(0.1, description="the least to go down to")
    ceiling: Share | None = Field(
        None,
        description="the most, where there is time; if null, what a request names, or else the "
        "model's best_budget",
    )

    @model_validator(mode="after")
    def _floor_below_ceiling(self) -> AutoBudget:
        if self.ceiling is not None and self.floor > self.ceiling:
            raise ValueError(f"floor {self.floor} is above ceiling {self.ceiling}")
        return self


def _mode(value: object) -> object:
    """What tells the budgets apart; it may be left out of a fixed one."""
    if isinstance(value, dict):
        mode = value.get("mode", "fixed")
        return "null" if mode is None else mode
    return getattr(value, "mode", None)


AnyBudget = Annotated[
    Annotated[FixedBudget, Tag("fixed")] | Annotated[AutoBudget, Tag("auto")],
    Discriminator(_mode),
]


class FollowingBudget(AutoBudget):
    """The auto mode as it stands."""

    budget: float = Field(description="of the default model, in force now")


class CurvePoint(BaseModel):
    """What a budget spends and keeps on test images."""

    budget: float
    fraction: float
    accuracy: float


class CostPoint(BaseModel):
    """What a batch was measured to take on this machine when the model was loaded."""

    budget: float
    batch: int = Field(description="images that run together")
    ms: float = Field(description="milliseconds for the whole batch, the agent included")


class Model(BaseModel):
    """A bundle that is served."""

    name: str
    default: bool
    digest: str = Field(description="SHA-256 of the bundle")
    labels: list[str]
    full_macs: int
    min_fraction: float = Field(description="the lowest budget that can be reached")
    best_budget: float = Field(
        description="the least that is as right as any on held-out images, to 0.1 points"
    )
    min_cap: float = Field(description="the lowest cap that can be kept")
    groups: int
    layers: int
    image_size: int = Field(description="side of the network's input, in pixels")
    engine: str
    curve: list[CurvePoint]
    budget: float = Field(description="in force now")
    budget_error: float = Field(
        description="share of the full MACs spent less that asked for, mean of the last thousand "
        "images or so"
    )
    costs: list[CostPoint] = Field(description="by budget and batch; empty if not measured")


class BundlePath(BaseModel):
    """Where the bundle of a model lies."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(
        None,
        description="a directory's name in the bundles' directory; absent: the one whose card has "
        "the model's name",
    )


class Models(BaseModel):
    """All bundles that are served."""

    models: list[Model]


class Health(BaseModel):
    """A word about the service's state."""

    status: str


class ProtocolErrorBody(BaseModel):
    """A refusal as the Open Inference Protocol has it."""

    error: str

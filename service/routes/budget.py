"""GET and PUT /budget: the budget in force."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Depends

from service.budget import Auto, Fixed
from service.registry import check_budget
from service.routes.bodies import no_query
from service.routes.errors import error_docs
from service.schemas import AnyBudget, FixedBudget, FollowingBudget
from service.state import Service, ServiceDep

router = APIRouter(tags=["budget"], dependencies=[Depends(no_query)])
logger = logging.getLogger(__name__)


@router.get(
    "/budget",
    summary="The budget in force",
    response_model=FixedBudget | FollowingBudget,
    responses=error_docs(503),
)
async def get_budget(service: ServiceDep) -> FixedBudget | FollowingBudget:
    """The budget of requests that name none; a model that cannot go so low takes its least."""
    service.check_ready()
    return _shown(service)


@router.put(
    "/budget",
    summary="Put a budget in force",
    response_model=FixedBudget | FollowingBudget,
    responses=error_docs(408, 413, 422, 500, 503),
)
async def put_budget(wanted: AnyBudget, service: ServiceDep) -> FixedBudget | FollowingBudget:
    """Set the budget of requests that name none, from the next one on.

    In the mode `auto` it follows the load: as much compute as lets requests be answered within
    `target_p95_ms`, but no less than `floor`, and at rest the model's `best_budget`, beyond which
    it is no more often right. A budget that a request names is then an upper bound.
    """
    service.check_ready()
    card = service.model(None).card
    if isinstance(wanted, FixedBudget):
        check_budget(card, wanted.budget)
        service.budget.mode = Fixed(wanted.budget)
    else:
        check_budget(card, wanted.floor, "floor")
        service.budget.mode = Auto(wanted.target_p95_ms / 1e3, wanted.floor, wanted.ceiling)
    logger.info("budget set", extra=wanted.model_dump())
    return _shown(service)


def _shown(service: Service) -> FixedBudget | FollowingBudget:
    mode = service.budget.mode
    if isinstance(mode, Fixed):
        return FixedBudget(budget=mode.budget)
    return FollowingBudget(
        mode="auto",
        target_p95_ms=mode.target_s * 1e3,
        floor=mode.floor,
        ceiling=mode.ceiling,
        budget=round(service.model(None).budget_in_force, 4),
    )

"""GET and PUT /budget: the budget in force."""

from __future__ import annotations

import logging

from fastapi import APIRouter

from service.registry import check_budget
from service.routes.errors import error_docs
from service.schemas import FixedBudget
from service.state import ServiceDep

router = APIRouter(tags=["budget"])

logger = logging.getLogger(__name__)


@router.get("/budget", summary="The budget in force", response_model=FixedBudget)
async def get_budget(service: ServiceDep) -> FixedBudget:
    """The budget of requests that name none; a model that cannot go so low takes its least."""
    return FixedBudget(budget=service.budget.value)


@router.put(
    "/budget",
    summary="Put a budget in force",
    response_model=FixedBudget,
    responses=error_docs(422),
)
async def put_budget(budget: FixedBudget, service: ServiceDep) -> FixedBudget:
    """Set the budget of requests that name none, from the next one on."""
    card = service.bundles[service.default].card
    check_budget(card.name, budget.budget, card.min_fraction)
    logger.info("budget set", extra={"budget": budget.budget, "before": service.budget.value})
    service.budget.set(budget.budget)
    return budget

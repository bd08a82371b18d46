"""GET /models: what is served, and what every budget costs."""

from __future__ import annotations

from fastapi import APIRouter

from service.registry import ServedModel
from service.routes.errors import error_docs
from service.schemas import CostPoint, CurvePoint, Model, Models
from service.state import ServiceDep

router = APIRouter(tags=["models"])


@router.get("/models", summary="What is served", response_model=Models, responses=error_docs(503))
async def get_models(service: ServiceDep) -> Models:
    """All bundles, each with its curve on test images and its lowest reachable budget."""
    service.check_ready()
    return Models(
        models=[_model(model, name == service.default) for name, model in service.models.items()]
    )


def _model(model: ServedModel, default: bool) -> Model:
    card = model.card
    return Model(
        name=card.name,
        default=default,
        labels=list(card.labels),
        full_macs=model.table.full,
        min_fraction=model.min_fraction,
        min_cap=model.min_cap,
        groups=card.backbone.groups,
        layers=card.backbone.n_layers,
        image_size=card.preprocessing.size,
        engine=model.engine.name,
        curve=[
            CurvePoint(budget=point.budget, fraction=point.fraction, accuracy=point.accuracy)
            for point in card.test
        ],
        budget=model.budget_in_force,
        budget_error=round(model.planner.correction.error, 4),
        costs=[
            CostPoint(budget=cost.budget, batch=cost.batch, ms=round(cost.ms, 3))
            for cost in (model.costs.costs if model.costs else [])
        ],
    )

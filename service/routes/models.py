"""/models: what is served, what every budget costs, and how models come and go."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from service.errors import UnknownModel, UnknownPath
from service.registry import ServedModel
from service.routes.bodies import no_query
from service.routes.errors import error_docs
from service.schemas import BundlePath, CostPoint, CurvePoint, ErrorBody, Model, Models
from service.state import Service, ServiceDep

# The framework would otherwise document an error of its own form for a path's parameter.
router = APIRouter(
    tags=["models"], responses={"4XX": {"model": ErrorBody}}, dependencies=[Depends(no_query)]
)

_ONE = "/models/{name}"


@router.get("/models", summary="What is served", response_model=Models, responses=error_docs(503))
async def get_models(service: ServiceDep) -> Models:
    """All bundles, each with its curve on test images and its lowest reachable budget."""
    service.check_ready()
    return Models(models=[_model(service, model) for model in service.models.values()])


@router.get(_ONE, summary="One model", response_model=Model, responses=error_docs(404, 503))
async def get_model(name: str, service: ServiceDep) -> Model:
    """One bundle, as in the list of all."""
    service.check_ready()
    try:
        return _model(service, service.model(name))
    except UnknownModel as error:
        raise UnknownPath(str(error)) from error


@router.put(
    _ONE,
    summary="Load or replace a model",
    response_model=Model,
    responses=error_docs(422, 500, 503),
)
async def put_model(name: str, service: ServiceDep, bundle: BundlePath | None = None) -> Model:
    """Serve what lies in the bundles' directory, verified anew, in place of what has the name.

    The answer comes when it is served. Until then the old one answers; no request is lost. Whoever
    comes second waits for the first. A bundle that is missing, not whole or does not fit changes
    nothing.
    """
    return _model(service, await service.load(name, bundle.path if bundle else None))


@router.delete(
    _ONE, summary="Unload a model", status_code=204, responses=error_docs(404, 409, 500, 503)
)
async def delete_model(name: str, service: ServiceDep) -> None:
    """Serve a model no more; requests that came before are answered. The default one stays."""
    try:
        await service.unload(name)
    except UnknownModel as error:
        raise UnknownPath(str(error)) from error


def _model(service: Service, model: ServedModel) -> Model:
    card = model.card
    return Model(
        name=card.name,
        default=card.name == service.default,
        digest=model.digest,
        labels=list(card.labels),
        full_macs=model.table.full,
        min_fraction=card.min_fraction,
        best_budget=card.best_budget,
        min_cap=card.min_cap,
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
            for cost in model.costs
        ],
    )

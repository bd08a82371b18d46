"""GET /docs: the API's documentation, its assets served from here, so it works offline."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from service import csp

router = APIRouter(include_in_schema=False)

_STATIC = Path(__file__).parents[1] / "static"


@router.get("/")
async def get_root() -> RedirectResponse:
    """To the documentation."""
    return RedirectResponse("/docs")


@router.get("/docs")
async def get_docs(request: Request) -> HTMLResponse:
    """Swagger UI."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=request.app.title,
        swagger_js_url="/static/swagger-ui-bundle.js",
        swagger_css_url="/static/swagger-ui.css",
        swagger_favicon_url="/static/favicon-32x32.png",
        # Its default is a validator on the internet.
        swagger_ui_parameters={"validatorUrl": None},
    )
    page.headers[csp.HEADER] = csp.page_policy(bytes(page.body).decode())
    return page


def mount_static(app: FastAPI) -> None:
    """Serve the assets of the documentation."""
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")

"""A plain FastAPI: a thread for each request, no batches, a process per core."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from benchmarks.peers_servers.network import Network, setting


def create_app() -> FastAPI:
    """Made once in each process."""
    app, network = FastAPI(), Network()

    def classify(content: bytes) -> dict[str, int]:
        return {"index": network.classify([network.decode(content)])[0]}

    @app.post("/classify")
    async def post_classify(request: Request) -> dict[str, int]:
        return await run_in_threadpool(classify, await request.body())

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    return app


if __name__ == "__main__":
    uvicorn.run(
        f"{__spec__.name}:create_app",
        factory=True,
        port=setting("port"),
        workers=setting("workers"),
        access_log=False,
    )

"""Probes and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from pydantic import BaseModel

from agnt5.client.models import PartitionReadiness, Readiness
from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.routing import PROBLEM, answers, router, shaped


class Alive(BaseModel):
    status: str = "ok"


def routes(gateway: Gateway) -> APIRouter:
    api = router("health")
    unready = {"model": Readiness, "description": "Not ready"}

    @api.head("/healthz", include_in_schema=False)  # how some monitors ask
    @api.get("/healthz", responses=_open(answers(Alive)))
    async def healthz() -> Response:
        """The process answers."""
        return shaped(Alive())

    @api.head("/readyz", include_in_schema=False)
    @api.get("/readyz", responses={**_open(answers(Readiness)), 503: unready})
    async def readyz() -> Response:
        """200 once every assigned partition is caught up; 503 before, with the list and the reason."""
        partitions = [
            PartitionReadiness(partition=partition, caught_up=caught_up)
            for partition, caught_up in sorted(gateway.engine.readiness())
        ]
        trouble = gateway.engine.trouble()
        ready = trouble is None and not gateway.closing.done() and all(one.caught_up for one in partitions)
        return shaped(Readiness(ready=ready, partitions=partitions, detail=trouble), 200 if ready else 503)

    @api.get("/metrics", responses={**answers(None), 200: _METRICS})
    async def metrics() -> Response:
        """This process's metrics, for Prometheus."""
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return api


_METRICS = {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}


def _open(responses: dict[int | str, dict[str, object]]) -> dict[int | str, dict[str, object]]:
    return {status: answer for status, answer in responses.items() if status not in (401, 503)} | {
        403: {"description": "From a foreign site", "content": PROBLEM}
    }

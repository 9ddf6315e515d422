"""`/v1/processors`: the live members of the group."""

from __future__ import annotations

from fastapi import APIRouter, Response

from agnt5.client.models import ProcessorList
from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.routing import answers, router, shaped


def routes(gateway: Gateway) -> APIRouter:
    api = router("processors")

    @api.get("/v1/processors", responses=answers(ProcessorList))
    async def list_processors() -> Response:
        """Who is there, and which partitions each owns."""
        members = await gateway.engine.processors()
        return shaped(ProcessorList(items=sorted(members, key=lambda member: member.id)))

    return api

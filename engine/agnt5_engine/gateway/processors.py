"""`/v1/processors`: the live members of the group."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from starlette.requests import Request

from agnt5.client.models import Processor, ProcessorList
from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.problems import ProblemError, RelayedError
from agnt5_engine.gateway.routing import answers, router, shaped


def routes(gateway: Gateway) -> APIRouter:
    api = router("processors")

    @api.get("/v1/processors", responses=answers(ProcessorList))
    async def list_processors(request: Request) -> Response:
        """Who is there, and which partitions each owns."""
        members = await gateway.engine.processors()
        if gateway.owners.hop(request) is None:
            members = await asyncio.gather(*(told(request, member) for member in members))
        return shaped(ProcessorList(items=sorted(members, key=lambda member: member.id)))

    async def told(request: Request, member: Processor) -> Processor:
        """With what only it knows itself: since when it runs. Unknown (null) while it does not answer."""
        if member.started_at is not None or not member.url:
            return member
        try:
            answer = await gateway.owners.page_of(request, member.url, {})
        except (ProblemError, RelayedError):
            return member
        own = [one for one in ProcessorList.model_validate_json(answer.content).items if one.id == member.id]
        return member.model_copy(update={"started_at": own[0].started_at}) if own else member

    return api

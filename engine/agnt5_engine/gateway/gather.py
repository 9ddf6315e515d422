"""Lists over the whole group: every processor gives its own part, one merges them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.problems import unavailable
from agnt5_engine.gateway.routing import shaped

PARTITIONS = "agnt5-partitions"
"""In a part's answer: which partitions it covers, so that a list never misses one silently."""

Part = TypeVar("Part", bound=BaseModel)


async def other_parts(
    gateway: Gateway, request: Request, shape: type[Part], query: Mapping[str, str]
) -> Sequence[Part]:
    """The same list of every other processor, its own part only; none when this request is such a question itself.
    Raises ProblemError 503 when some partition's part is missing."""
    if gateway.owners.hop(request) is not None:
        return ()
    own = gateway.engine.owned()
    covered = set(own)
    wanted = frozenset(range(gateway.settings.partitions))
    parts: list[Part] = []
    if covered < wanted:
        members = await gateway.engine.processors()
        urls = sorted({member.url for member in members if not own.issuperset(member.partitions)})
        for answer in await asyncio.gather(*(gateway.owners.page_of(request, url, query) for url in urls)):
            parts.append(shape.model_validate_json(answer.content))
            covered.update(int(number) for number in answer.headers.get(PARTITIONS, "").split(",") if number)
    if missing := sorted(wanted - covered):
        raise unavailable(f"Partitions {missing} are changing hands; the list would be incomplete. Ask again.")
    return parts


def part(gateway: Gateway, request: Request, value: BaseModel) -> Response:
    """A list as a response; as the answer to another processor, with the partitions it covers."""
    response = shaped(value)
    if gateway.owners.hop(request) is not None:
        response.headers[PARTITIONS] = ",".join(str(number) for number in sorted(gateway.engine.owned()))
    return response

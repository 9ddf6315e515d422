"""`POST /v1/events`: publishing to a topic."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from agnt5.client.models import Published
from agnt5_engine.gateway.body import shaped_body
from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.problems import ProblemError, invalid
from agnt5_engine.gateway.routing import answers, json_input, router, shaped
from agnt5_engine.gateway.runs import ENVELOPE_BYTES
from agnt5_engine.runs.outbox import EVENT_ID

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class Publication(BaseModel):
    """An event for a topic. Triggers start one run per `event_id`."""

    model_config = ConfigDict(extra="forbid")

    event_name: Annotated[str, Field(description="The topic.", min_length=1, max_length=249)]
    payload: Any
    event_id: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    key: Annotated[str, Field(max_length=1024)] | None = None


def routes(gateway: Gateway) -> APIRouter:
    api = router("events")

    @api.post(
        "/v1/events",
        responses=answers(Published, body=True),
        openapi_extra=json_input(Publication.model_json_schema()),
    )
    async def publish_event(request: Request) -> Response:
        """Publish an event: 200 once it is durable."""
        limit = gateway.settings.max_payload_bytes
        publication = await shaped_body(request, Publication, limit + ENVELOPE_BYTES)
        topic = publication.event_name
        refuse_topic(topic, gateway.settings.topic_prefix)
        value = to_json(publication.payload)
        if len(value) > limit:
            raise ProblemError(413, "too-large", f"The payload is larger than {limit} bytes (AGNT5_MAX_PAYLOAD_BYTES).")
        headers = () if publication.event_id is None else ((EVENT_ID, publication.event_id.encode()),)
        key = None if publication.key is None else publication.key.encode()
        partition, ack = await gateway.engine.publish(topic, value, key, headers)
        return shaped(Published(topic=topic, partition=partition, offset=ack.offset))

    return api


def refuse_topic(topic: str, prefix: str) -> None:
    """Raises ProblemError 422 for a name Kafka would refuse, and for the engine's own topics."""
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        message = "is not a topic name: up to 249 letters, digits, '.', '_' and '-'"
        raise invalid([{"field": "event_name", "message": message}])
    if topic.startswith(prefix):
        message = f"topics that begin with {prefix!r} are the engine's own; give the event another name"
        raise invalid([{"field": "event_name", "message": message}])

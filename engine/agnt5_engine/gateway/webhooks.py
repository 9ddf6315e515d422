"""`POST /v1/webhooks/{source}`: one start per workflow that wants the delivery, once per delivery."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic_core import to_json

from agnt5.client.models import StartedRuns, Submitted
from agnt5.types import Envelope
from agnt5_engine.gateway.body import read_body
from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.deliveries import Delivery, read_delivery
from agnt5_engine.gateway.door import keyless
from agnt5_engine.gateway.metrics import WEBHOOKS
from agnt5_engine.gateway.problems import ProblemError
from agnt5_engine.gateway.routing import answers, json_input, router, shaped
from agnt5_engine.gateway.signatures import NAMED_SOURCES, ForgedError, UnusableSecretError, verifier
from agnt5_engine.gateway.starting import bind, start_somewhere
from agnt5_engine.ports import StartRequest

Source = Annotated[str, Path(description="Who sends it: stripe, github, slack, or a name of your own.")]


def routes(gateway: Gateway) -> APIRouter:
    api = router("webhooks")

    @api.post(
        "/v1/webhooks/{source}",
        status_code=202,
        responses={**answers(StartedRuns, status=202, body=True, also=(404,)), 200: _CHALLENGE},
        openapi_extra=json_input({"type": "object"}),
    )
    async def receive_webhook(request: Request, source: Source) -> Response:
        """Verify a webhook and start the workflows that want it: 202 with their runs once that is durable. A delivery
        that comes again starts nothing new."""
        source = source.lower()
        body = await read_body(request, gateway.settings.max_payload_bytes)
        verify(gateway, request, source, body)
        delivery = read_delivery(source, body, request.headers)
        if source == "slack" and delivery.types[:1] == ("url_verification",):
            challenge = {"challenge": delivery.body.get("challenge", "")}
            return Response(to_json(challenge), media_type="application/json")
        hop = gateway.owners.hop(request)
        starts = [
            start
            for start in wanted_starts(gateway, source, delivery)
            if hop is None or hop.workflow in (None, start.workflow)
        ]
        started = [await start_somewhere(gateway, request, start, f"/v1/webhooks/{source}") for start in starts]
        if hop is not None and hop.workflow is not None:
            if not started:
                raise ProblemError(404, "unwanted", f"Here no workflow {hop.workflow!r} wants this webhook.")
            [one] = started
            return shaped(Submitted.model_construct(run_id=one.run_id, status=one.status, existing=one.existing), 202)
        WEBHOOKS.labels(source, "started" if started else "unwanted").inc()
        return shaped(StartedRuns(runs=[one.run_id for one in started]), 202)

    return api


def verify(gateway: Gateway, request: Request, source: str, body: bytes) -> None:
    """Raises ProblemError: 401 for a bad signature, 404 for a source nobody knows, 503 without a secret."""
    secrets = gateway.settings.webhook_secrets_of(source)
    if not secrets:
        if keyless(request):
            raise _forged("it has no key, and there is no secret to check a signature by")
        if source not in NAMED_SOURCES and not gateway.catalog.webhooks(source):
            raise ProblemError(
                404,
                "unknown-source",
                f"No workflow has a webhook trigger for {source[:80]!r}, and no secret is set for it.",
            )
        variable = f"AGNT5_WEBHOOK_{''.join(c if c.isalnum() else '_' for c in source[:80]).upper()}_SECRET"
        raise ProblemError(503, "no-secret", f"Set {variable}: without it nothing from {source[:80]!r} can be trusted.")
    try:
        verifier(source, request.headers)(body, request.headers, secrets)
    except ForgedError as error:
        # Names that differ in a sign are one to the settings; anybody could send any number of them.
        known = source in NAMED_SOURCES or gateway.catalog.webhooks(source)
        WEBHOOKS.labels(source if known else "other", "forged").inc()
        raise _forged(str(error)) from None
    except UnusableSecretError as error:
        raise ProblemError(503, "no-secret", f"The secret for {source[:80]!r} cannot be used: {error}.") from None


def wanted_starts(gateway: Gateway, source: str, delivery: Delivery) -> list[StartRequest]:
    """One start for each workflow with a trigger that wants the delivery. All of them bind, or ProblemError 422 and
    none is started: the provider then shows the failure and sends it again."""
    trigger: dict[str, Any] = {"kind": "webhook", "source": source, "delivery_id": delivery.id}
    if delivery.types:
        trigger["event"] = delivery.types[-1]
    wanted = {one.workflow: one for one in gateway.catalog.webhooks(source) if delivery.wanted_as(one.event)}
    if not wanted:
        return []
    whole = Envelope(key=delivery.id, timestamp=time.time_ns() // 1_000_000, value=delivery.body).to_json()
    fields = to_json(delivery.fields)
    starts = []
    for name, one in wanted.items():
        envelope = whole if one.takes_event else None
        start = StartRequest(
            workflow=name,
            input=bind(gateway, name, fields, strict=False, envelope=envelope),
            trigger=trigger,
            dedupe=f"webhook:{source}:{delivery.id}",
            envelope=envelope,
        )
        starts.append(start)
    return starts


def _forged(reason: str) -> ProblemError:
    return ProblemError(
        401, "bad-signature", f"This webhook is not accepted: {reason}.", headers={"www-authenticate": "Signature"}
    )


_CHALLENGE: dict[str, Any] = {
    "description": "The answer to Slack's url_verification",
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"challenge": {"type": "string"}}, "required": ["challenge"]}
        }
    },
}

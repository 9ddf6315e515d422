"""Questions to people: the inbox over all partitions, and the answers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from agnt5.client.models import Approval, ApprovalList, Status
from agnt5_engine.gateway.body import shaped_body
from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.cursors import decode_cursor, encode_cursor, milliseconds
from agnt5_engine.gateway.gather import other_parts, part
from agnt5_engine.gateway.routing import answers, header, json_input, router, shaped
from agnt5_engine.gateway.runs import ENVELOPE_BYTES, RunId, known_form
from agnt5_engine.gateway.starting import named_header
from agnt5_engine.ports import NotHere, UnknownRun


class Answer(BaseModel):
    """The answer to a run's pending question: text, an option's id, a list of ids, or null to skip."""

    model_config = ConfigDict(extra="forbid")

    user_response: Any
    entry: str | None = None


def routes(gateway: Gateway) -> APIRouter:
    api = router("approvals")

    @api.post(
        "/v1/workflows/resume/{run_id}",
        responses=answers(Status, body=True, also=(404, 409)),
        openapi_extra={
            **json_input(Answer.model_json_schema()),
            "parameters": [header("X-User-ID", "Who answers; the history keeps it.")],
        },
    )
    async def resume_run(request: Request, run_id: RunId) -> Response:
        """Answer the run's pending question: 200 once that is applied."""
        known_form(run_id)
        answer = await shaped_body(request, Answer, gateway.settings.max_payload_bytes + ENVELOPE_BYTES)
        who = named_header(request, "x-user-id")
        await gateway.engine.answer(run_id, answer.user_response, answer.entry, who)
        try:
            status = (await gateway.engine.run(run_id)).status
        except (NotHere, UnknownRun):  # moved since; the answer must not be passed on a second time
            status = "running"
        return shaped(Status(run_id=run_id, status=status))

    @api.get("/v1/approvals", responses=answers(ApprovalList))
    async def list_approvals(
        request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 1000, cursor: str | None = None
    ) -> Response:
        """Every open question, oldest first."""
        after = None if cursor is None else decode_cursor(cursor)
        own = [one for one in await gateway.engine.approvals() if after is None or _position(one) > after]
        others = await other_parts(gateway, request, ApprovalList, request.query_params)
        open_ones = {(one.run_id, one.entry): one for other in others for one in other.items}
        open_ones.update(((one.run_id, one.entry), one) for one in own)
        ordered = sorted(open_ones.values(), key=_position)
        more = len(ordered) > limit or any(other.next_cursor for other in others)
        shown = ordered[:limit]
        following = encode_cursor(*_position(shown[-1])) if more and shown else None
        return part(gateway, request, ApprovalList(items=shown, next_cursor=following))

    return api


def _position(approval: Approval) -> tuple[int, str]:
    return milliseconds(approval.asked_at), f"{approval.run_id} {approval.entry}"

"""What could not be decoded, bound or applied: look at it, and send it in again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from agnt5.client.models import DeadLetter, DeadLetterList, StartedRuns
from agnt5_engine.gateway.context import Gateway
from agnt5_engine.gateway.cursors import decode_cursor, encode_cursor, milliseconds, unusable_cursor
from agnt5_engine.gateway.problems import ProblemError
from agnt5_engine.gateway.routing import answers, router, shaped

LetterId = Annotated[str, Path(description="The dead letter's ID.", max_length=300)]


def routes(gateway: Gateway) -> APIRouter:
    api = router("dead letters")
    engine = gateway.engine

    @api.get("/v1/dead-letters", responses=answers(DeadLetterList))
    async def list_dead_letters(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100, cursor: str | None = None
    ) -> Response:
        """Dead letters, oldest first."""
        after = None if cursor is None else decode_cursor(cursor)[1]
        try:
            letters = await engine.dead_letters(limit + 1, after)
        except LookupError:
            raise unusable_cursor() from None
        following = None
        if len(letters) > limit:
            letters = letters[:limit]
            following = encode_cursor(milliseconds(letters[-1].time), letters[-1].id)
        return shaped(DeadLetterList(items=letters, next_cursor=following))

    @api.get("/v1/dead-letters/{letter_id}", responses=answers(DeadLetter, also=(404,)))
    async def get_dead_letter(letter_id: LetterId) -> Response:
        """One dead letter, decoded as far as possible."""
        try:
            return shaped(await engine.dead_letter(letter_id))
        except LookupError:
            raise _unknown(letter_id) from None

    @api.post(
        "/v1/dead-letters/{letter_id}/redrive",
        status_code=202,
        responses=answers(StartedRuns, status=202, also=(404, 409)),
    )
    async def redrive_dead_letter(letter_id: LetterId) -> Response:
        """Put the original through its way in again; 202 with the runs that came of it."""
        try:
            runs = await engine.redrive(letter_id)
        except LookupError as error:  # the letter, or the original that was too large to be kept in it
            raise ProblemError(404, "unknown-dead-letter", f"{error}.") from None
        return shaped(StartedRuns(runs=runs), 202)

    return api


def _unknown(letter_id: str) -> ProblemError:
    return ProblemError(404, "unknown-dead-letter", f"There is no dead letter {letter_id[:200]!r}.")

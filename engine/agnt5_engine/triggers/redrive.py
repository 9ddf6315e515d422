"""What putting a dead letter's original through its way in again comes to."""

from __future__ import annotations

from typing import NamedTuple

from agnt5_engine.ports import Refused, StartRequest
from agnt5_engine.records.avro import RecordError, decode_journal
from agnt5_engine.transport.base import Message, Record, TopicPartition
from agnt5_engine.triggers.dead_letters import UNDECODABLE, Letter
from agnt5_engine.triggers.events import EventTriggers


class Redriven(NamedTuple):
    """Runs to start and letters of the workflows that still cannot take it, or a journal record to append again to
    `journal` (then `run_id` is whom it concerns)."""

    requests: list[StartRequest]
    letters: list[Letter]
    journal: TopicPartition | None = None
    message: Message | None = None
    run_id: str | None = None


async def redriven(letter: Letter, original: Record, triggers: EventTriggers, journal_topic: str) -> Redriven:
    """Decode and bind the original with today's code. The run IDs are those that it would have had, so redriving twice
    starts nothing twice. Raises Refused when it still cannot be taken: the letter stays as it is."""
    if letter.source.topic == journal_topic:
        return _journal(letter, original)
    workflows = triggers.workflows(letter.source.topic)
    if not workflows:
        raise Refused("not_subscribed", f"no workflow here is triggered by {letter.source.topic} (any more)")
    if letter.workflow is not None and letter.workflow not in workflows:
        told = f"workflow {letter.workflow} is not triggered by {letter.source.topic} here (any more)"
        raise Refused("not_subscribed", told)
    await triggers.prepare([original])
    found = triggers.requests(letter.source, original, letter.workflow)
    if found.letters and not found.requests:
        first = found.letters[0]
        who = f"workflow {first.workflow}: " if first.workflow else ""
        raise Refused(first.reason, f"it still cannot be taken: {who}{first.detail}")
    return Redriven(found.requests, found.letters)


def _journal(letter: Letter, original: Record) -> Redriven:
    try:
        record = decode_journal(original.value or b"")
    except RecordError as error:
        raise Refused(UNDECODABLE, f"it still cannot be decoded: {error}") from None
    message = Message(original.key, original.value, original.headers)
    return Redriven([], [], letter.source, message, getattr(record, "run_id", None))

"""A member's way into the group, fitted to static members: hooks into aiokafka's coordinator, and why a member cannot
come in at all."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from aiokafka import errors
from aiokafka.coordinator.protocol import ConsumerProtocol, ConsumerProtocolMemberAssignment
from aiokafka.protocol.admin import DescribeGroupsRequest

from agnt5_engine.transport.kafka.members import replaced_by

if TYPE_CHECKING:
    from agnt5_engine.transport.kafka.assignor import Assignor

_SETTLE_SECONDS = 5.0


class ReplacedError(errors.KafkaError):  # type: ignore[misc]
    """Another process has joined the group under our instance ID."""


HOPELESS = (
    ReplacedError,
    errors.InvalidSessionTimeoutError,
    errors.InconsistentGroupProtocolError,
    errors.GroupAuthorizationFailedError,
    errors.InvalidGroupIdError,
)


def why_hopeless(error: errors.KafkaError) -> str:
    """What to tell of a HOPELESS error."""
    remedy = {
        ReplacedError: "every processor needs an AGNT5_INSTANCE_ID of its own; this one ends",
        errors.InvalidSessionTimeoutError: "AGNT5_SESSION_TIMEOUT must lie between the brokers' "
        "group.min.session.timeout.ms and group.max.session.timeout.ms",
        errors.InconsistentGroupProtocolError: "AGNT5_GROUP is the group of another kind of program; choose another",
        errors.GroupAuthorizationFailedError: "this user may not use AGNT5_GROUP; give it access, or choose another",
    }
    return f"the group cannot be joined ({error}): {remedy.get(type(error), 'check AGNT5_GROUP')}"


class Joining:
    """Both ends of a join, fitted to static members."""

    def __init__(self, coordinator: Any, app: Any) -> None:
        self._coordinator = coordinator
        self._assignor: Assignor = app.assignor
        self._wiring = app.wiring
        self._complete = coordinator._on_join_complete
        self._rejoin = coordinator._do_rejoin_group
        self._commit = coordinator._do_commit_offsets
        self._been_in = False
        self._under_way = False

    async def rejoin(self, subscription: Any) -> Any:
        """Raises ReplacedError rather than put out the process that has put us out: they would take turns for ever.

        Kafka tells a member that was replaced no more than one that was silent for too long: that it is unknown."""
        if self._been_in and self._coordinator.member_id == "":
            await self._check_not_replaced()
        self._under_way = True
        try:
            return await self._rejoin(subscription)
        finally:
            self._under_way = False

    async def commit(self, assignment: Any, offsets: Any) -> None:
        """Commit now, or raise RebalanceInProgressError.

        The broker answers a connection's requests in order. A commit behind a join, which it answers when the others
        have joined too, would be of a generation that is over by then, and aiokafka would have the group rearranged
        once more: with a steady stream of events, for ever."""
        if self._under_way:
            raise errors.RebalanceInProgressError(self._coordinator.group_id)
        await self._commit(assignment, offsets)

    async def _check_not_replaced(self) -> None:
        coordinator, wiring = self._coordinator, self._wiring
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            response = await coordinator._send_req(DescribeGroupsRequest([wiring.app_id]))
            _, _, state, _, _, members, *_ = response.groups[0]
            if state not in ("PreparingRebalance", "CompletingRebalance"):
                there = replaced_by(members, wiring.journal, wiring.instance_id)
                if there is not None:
                    raise ReplacedError(f"the processor at {there} has joined as {wiring.instance_id!r} too")
                return
            await asyncio.sleep(0.2)

    async def complete(self, generation: int, member_id: str, protocol: str, data: bytes) -> None:
        """Kafka gives a static member that comes back its old assignment, topics included that it wants no more."""
        coordinator = self._coordinator
        self._been_in = True
        given = ConsumerProtocol.ASSIGNMENT.decode(data)
        wanted = coordinator._subscription.subscription.topics
        kept = [(topic, partitions) for topic, partitions in given.assignment if topic in wanted]
        if len(kept) < len(given.assignment):
            data = ConsumerProtocolMemberAssignment(given.version, kept, given.user_data).encode()
        await self._complete(generation, member_id, protocol, data)
        if len(kept) < len(given.assignment):
            self._assignor.insist()
            coordinator.request_rejoin()

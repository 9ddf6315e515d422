"""Who is in the group: each member's address and partitions, from the group's own metadata; and how to drop one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from aiokafka import errors
from aiokafka.client import CoordinationType
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int16, Int32, Schema, String

from agnt5_engine import place
from agnt5_engine.transport.base import Member, TransportError
from agnt5_engine.transport.kafka.wire import RETRIABLE, Attempt, Wire, unless_final

_UNKNOWN_MEMBER = 25
_FENCED_INSTANCE = 82
_SETTLE_SECONDS = 30.0  # longer than a rebalance may take


def address(url: str, instance_id: str) -> str:
    """What a member calls itself in the group. Faust's assignor keys members by it, so it must be unique."""
    return f"{url}#{instance_id}~{place.name}"


def replaced_by(members: Sequence[Any], journal: str, instance_id: str) -> str | None:
    """The URL of the other process that is in the group under this instance ID, from a description of its members."""
    for described in members:
        member = _member(described, journal)
        if member is not None and member.instance_id == instance_id and _place(described[3]) != place.name:
            return member.url
    return None


def _place(metadata: bytes) -> str:
    told = json.loads(ConsumerProtocol.METADATA.decode(metadata).user_data)
    return str(told["url"]).rpartition("~")[2]


async def group_members(wire: Wire, group: str, journal: str) -> list[Member]:
    """The members of a group that are at work, with the journal partitions that each owns.

    While the group is being rearranged nobody is at work: then this waits for it, for about two seconds.
    """
    found = [_member(member, journal) for member in await _described(wire, group, seconds=2)]
    return sorted(member for member in found if member is not None)


async def _described(wire: Wire, group: str, seconds: float) -> Any:
    """The members, with what they say of themselves if the group is settled within so many seconds."""
    request = DescribeGroupsRequest([group])
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        response = await _coordinate(wire, group, request, lambda answer: int(answer.groups[0][0]))
        settled = response.groups[0][2] not in ("PreparingRebalance", "CompletingRebalance")
        if settled or asyncio.get_running_loop().time() > deadline:
            return response.groups[0][5]
        await asyncio.sleep(0.25)


def _member(described: Any, journal: str) -> Member | None:
    """None for a member that is not one of this engine's, or has nothing to say yet."""
    _, _, _, metadata, assignment = described
    if not metadata:
        return None
    try:
        told = json.loads(ConsumerProtocol.METADATA.decode(metadata).user_data)
        url, _, name = told["url"].rpartition("#")
        instance_id = name.partition("~")[0]
    except (ValueError, KeyError, TypeError):
        return None
    owned: list[int] = []
    if assignment:
        for topic, partitions in ConsumerProtocol.ASSIGNMENT.decode(assignment).assignment:
            if topic == journal:
                owned = sorted(partitions)
    return Member(instance_id, url, tuple(owned))


async def drop_place(wire: Wire, group: str, journal: str, name: str) -> list[str]:
    """Make the group forget the member at this place (see `agnt5_engine.place`), alive or dead, at once.

    Returns its instance ID, or nothing where the group knows no such member. It goes by its member ID: a process that
    has joined under the same instance ID since is left alone.
    """
    leaving = [
        (described[0], member.instance_id)
        for described in await _described(wire, group, seconds=_SETTLE_SECONDS)
        if (member := _member(described, journal)) is not None and _place(described[3]) == name
    ]
    if not leaving:
        return []
    response = await _coordinate(wire, group, _LeaveRequest(group, leaving), lambda answer: int(answer.error_code))
    for _, instance_id, code in response.members:
        if code not in (0, _UNKNOWN_MEMBER, _FENCED_INSTANCE):
            raise TransportError(f"group {group!r} keeps {instance_id!r}: {errors.for_code(code).__name__}")
    return [instance_id for _, instance_id, code in response.members if code == 0]


async def _coordinate(wire: Wire, group: str, request: Any, code_of: Callable[[Any], int]) -> Any:
    attempt = Attempt(wire)
    while True:
        node = await wire.coordinator(CoordinationType.GROUP, group)
        try:
            response = await wire.send(node, request)
        except errors.KafkaError as error:
            problem: Exception = unless_final(error)
        else:
            code = code_of(response)
            if code == 0:
                return response
            if code not in RETRIABLE:
                raise TransportError(f"group {group!r}: {errors.for_code(code).__name__}")
            problem = errors.for_code(code)()
        wire.forget_coordinator(CoordinationType.GROUP, group)
        await attempt.failed(problem)


# aiokafka stops before the version that can name a static member.


class _LeaveResponse_v3(Response):  # type: ignore[misc]
    API_KEY = 13
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "members",
            Array(
                ("member_id", String("utf-8")),
                ("group_instance_id", String("utf-8")),
                ("error_code", Int16),
            ),
        ),
    )


class _LeaveRequest_v3(RequestStruct):  # type: ignore[misc]
    API_KEY = 13
    API_VERSION = 3
    RESPONSE_TYPE = _LeaveResponse_v3
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("members", Array(("member_id", String("utf-8")), ("group_instance_id", String("utf-8")))),
    )


class _LeaveRequest(Request[_LeaveRequest_v3]):  # type: ignore[misc]
    API_KEY: ClassVar[int] = 13

    def __init__(self, group: str, members: Sequence[tuple[str, str]]) -> None:
        """`members`: the member ID and instance ID of each."""
        self._group = group
        self._members = members

    def build(self, request_struct_class: type[_LeaveRequest_v3]) -> Any:
        return request_struct_class(self._group, self._members)

"""Who is in the group: each member's address and partitions, from the group's own metadata; and how to drop one."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from aiokafka import errors
from aiokafka.client import CoordinationType
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int16, Int32, Schema, String

from agnt5_engine.transport.base import Member, TransportError
from agnt5_engine.transport.kafka.wire import RETRIABLE, Attempt, Wire, unless_final

_MOVED = frozenset({15, 16})
_UNKNOWN_MEMBER = 25


_PROCESS = uuid.uuid4().hex[:12]


def address(url: str, instance_id: str) -> str:
    """What a member calls itself in the group. Faust's assignor keys members by it, so it must be unique."""
    return f"{url}#{instance_id}~{_PROCESS}"


def replaced_by(members: Sequence[Any], journal: str, instance_id: str) -> str | None:
    """The URL of the other process that is in the group under this instance ID, from a description of its members."""
    for described in members:
        member = _member(described, journal)
        if member is not None and member.instance_id == instance_id and _process(described[3]) != _PROCESS:
            return member.url
    return None


def _process(metadata: bytes) -> str:
    told = json.loads(ConsumerProtocol.METADATA.decode(metadata).user_data)
    return str(told["url"]).rpartition("~")[2]


async def group_members(wire: Wire, group: str, journal: str) -> list[Member]:
    """The members of a group that are at work, with the journal partitions that each owns.

    While the group is being rearranged nobody is at work: then this waits for it, for about two seconds.
    """
    request = DescribeGroupsRequest([group])
    for _ in range(8):
        response = await _coordinate(wire, group, request, lambda answer: int(answer.groups[0][0]))
        if response.groups[0][2] not in ("PreparingRebalance", "CompletingRebalance"):
            break
        await asyncio.sleep(0.25)
    found = [_member(member, journal) for member in response.groups[0][5]]
    return sorted(member for member in found if member is not None)


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


async def leave_group(wire: Wire, group: str, instance_ids: Sequence[str]) -> list[str]:
    """Make the group forget static members at once, be they alive or dead; returns those it knew."""
    if not instance_ids:
        return []
    response = await _coordinate(wire, group, _LeaveRequest(group, instance_ids), lambda answer: int(answer.error_code))
    for _, instance_id, code in response.members:
        if code not in (0, _UNKNOWN_MEMBER):
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

    def __init__(self, group: str, instance_ids: Sequence[str]) -> None:
        self._group = group
        self._members = [("", instance_id) for instance_id in instance_ids]

    def build(self, request_struct_class: type[_LeaveRequest_v3]) -> Any:
        return request_struct_class(self._group, self._members)

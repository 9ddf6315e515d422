"""Topics: what the engine wants, what is there, and what would have to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from aiokafka import errors
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import Array, Boolean, Int8, Int16, Int32, Schema, String

from agnt5_engine.transport.base import BadTopicError, TopicInfo, TopicPartition, TopicSpec, TransportError
from agnt5_engine.transport.kafka.wire import RETRIABLE, Attempt, Wire

REPLICATION = "replication.factor"  # not a setting of Kafka's, but told beside them
_TOPIC = 2  # resource type
_UNAUTHORIZED, _EXISTS, _BAD_REPLICATION = 29, 36, 38
_TIMEOUT_MS = 8_000


def wanted(spec: TopicSpec, replication: int) -> dict[str, str]:
    """Kafka's settings for a topic of the engine."""
    settings = {
        "cleanup.policy": spec.cleanup,
        "retention.ms": str(-1 if spec.retention_ms is None else spec.retention_ms),
        "retention.bytes": "-1",  # a cluster-wide limit by size would cut the log under live runs
        "max.message.bytes": str(spec.max_message_bytes),
        # With a time of ours, a processor whose clock is an hour ahead would be refused, one far behind soon forgotten.
        "message.timestamp.type": "LogAppendTime",
        "unclean.leader.election.enable": "false",  # it forgets acknowledged records
        "compression.type": "producer",  # a broker that packs what it takes may do so in a way that needs a library
    }
    if replication >= 3:
        settings["min.insync.replicas"] = "2"
    return settings


# ------------------------------------------------------------------ plan


@dataclass(frozen=True, slots=True)
class Create:
    """A topic that is missing."""

    spec: TopicSpec
    replication: int

    def __str__(self) -> str:
        return f"create {self.spec.name}: {self.spec.partitions} partitions, {self.replication} replicas"


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that can be put right in place."""

    topic: str
    setting: str
    present: str
    value: str

    def __str__(self) -> str:
        return f"change {self.topic}: {self.setting} from {self.present} to {self.value}"


@dataclass(frozen=True, slots=True)
class Contradiction:
    """What the engine cannot work with and must not change by itself. `reason` says the remedy."""

    topic: str
    reason: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.reason}"


Step = Create | Change | Contradiction


def plan(specs: Sequence[TopicSpec], existing: Mapping[str, TopicInfo], replication: int) -> list[Step]:
    """What stands between the topics as they are and as the engine wants them; empty when nothing does.

    `existing` is what `Log.topics` told of a real cluster. More than is wanted (retention, record size, replicas in
    sync) is left alone.
    """
    steps: list[Step] = []
    for spec in specs:
        info = existing.get(spec.name)
        if info is None:
            steps.append(Create(spec, replication))
        else:
            steps += _compare(spec, info)
    return steps


def _compare(spec: TopicSpec, info: TopicInfo) -> list[Step]:
    steps: list[Step] = []
    present = info.config
    if info.partitions != spec.partitions:
        steps.append(
            Contradiction(
                spec.name,
                f"has {info.partitions} partitions, {spec.partitions} are wanted, and the number decides where a run "
                f"lives; set AGNT5_PARTITIONS={info.partitions}, or use another AGNT5_TOPIC_PREFIX",
            )
        )
    policy = set(present.get("cleanup.policy", spec.cleanup).split(","))
    if policy != set(spec.cleanup.split(",")):
        if "compact" in policy and "compact" not in spec.cleanup:
            steps.append(
                Contradiction(
                    spec.name,
                    f"has cleanup.policy={','.join(sorted(policy))}, and compaction may have removed records that runs "
                    f"need; set it to {spec.cleanup} and check the runs, or use another AGNT5_TOPIC_PREFIX",
                )
            )
        else:
            steps.append(Change(spec.name, "cleanup.policy", ",".join(sorted(policy)), spec.cleanup))
    replicas = int(present.get(REPLICATION, "1"))
    for setting, value in wanted(spec, replicas).items():
        if setting == "cleanup.policy" or setting not in present:
            continue
        if not _suffices(setting, present[setting], value):
            steps.append(Change(spec.name, setting, present[setting], value))
    return steps


def _suffices(setting: str, present: str, value: str) -> bool:
    if setting in ("retention.ms", "retention.bytes"):
        return int(present) == -1 or (value != "-1" and int(present) >= int(value))
    if setting in ("max.message.bytes", "min.insync.replicas"):
        return int(present) >= int(value)
    return present == value


# ------------------------------------------------------------------ do


async def create(wire: Wire, specs: Sequence[TopicSpec], replication: int | None) -> None:
    """Create topics; one that exists is left as it is. Returns when every partition has a leader. `replication` None:
    3, or as many as there are brokers."""
    if not specs:
        return
    if replication is None:
        client = await wire.ready()
        await wire.refresh()
        replication = max(min(3, len(client.cluster.brokers())), 1)
    wishes: list[Any] = [
        (spec.name, spec.partitions, replication, [], list(wanted(spec, replication).items())) for spec in specs
    ]
    attempt = Attempt(wire)
    while wishes:
        response = await wire.ask(CreateTopicsRequest(wishes, _TIMEOUT_MS, False))
        again = set()
        for topic, code, message in response.topic_errors:
            if code in RETRIABLE:
                again.add(topic)
            elif code == _BAD_REPLICATION:
                raise BadTopicError(
                    f"topic {topic!r} cannot have {replication} replicas ({message}); set AGNT5_REPLICATION to at most "
                    "the number of brokers"
                )
            elif code not in (0, _EXISTS):
                raise BadTopicError(
                    f"Kafka will not create topic {topic!r}: {message or errors.for_code(code).__name__}"
                )
        wishes = [wish for wish in wishes if wish[0] in again]
        if wishes:
            await attempt.failed(TransportError(f"topic {wishes[0][0]!r} cannot be created just now"))
    for spec in specs:
        await wire.find_leader(TopicPartition(spec.name, 0))
        for partition in range(1, len(wire.cluster.partitions_for_topic(spec.name) or ())):
            await wire.find_leader(TopicPartition(spec.name, partition))


async def describe(wire: Wire, names: Sequence[str] | None) -> dict[str, TopicInfo]:
    """The topics that exist, with their settings; Kafka's internal ones are left out of "all"."""
    if names is not None and not names:
        return {}
    asked = None if names is None else list(names)
    metadata = await wire.ask(MetadataRequest(asked, allow_auto_topic_creation=False))
    shape: dict[str, tuple[int, int]] = {}
    for code, topic, internal, partitions in metadata.topics:
        if code == _UNAUTHORIZED:
            raise BadTopicError(f"Kafka does not let us see topic {topic!r}; give this user access to it")
        if code == 0 and (asked is not None or not internal):
            shape[topic] = (len(partitions), min((len(p[3]) for p in partitions), default=0))
    if not shape:
        return {}
    response = await wire.ask(DescribeConfigsRequest([(_TOPIC, topic, None) for topic in shape], False))
    found: dict[str, TopicInfo] = {}
    for code, message, _, topic, entries in response.resources:
        if code == 3:  # deleted a moment ago
            continue
        if code != 0:
            raise BadTopicError(f"Kafka does not tell the settings of topic {topic!r}: {message}")
        partitions, replicas = shape[topic]
        config = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
        found[topic] = TopicInfo(topic, partitions, {**config, REPLICATION: str(replicas)})
    return found


async def change(wire: Wire, changes: Sequence[Change]) -> None:
    """Put settings right. Raises BadTopicError when Kafka refuses."""
    by_topic: dict[str, list[tuple[str, int, str]]] = {}
    for item in changes:
        by_topic.setdefault(item.topic, []).append((item.setting, 0, item.value))
    if not by_topic:
        return
    response = await wire.ask(_AlterRequest([(_TOPIC, topic, settings) for topic, settings in by_topic.items()]))
    for code, message, _, topic in response.responses:
        if code != 0:
            raise BadTopicError(f"Kafka will not change topic {topic!r}: {message or errors.for_code(code).__name__}")


# aiokafka has only the older request, which resets every setting it does not name.


class _AlterResponse_v0(Response):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "responses",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
            ),
        ),
    )


class _AlterRequest_v0(RequestStruct):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = _AlterResponse_v0
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                (
                    "configs",
                    Array(("name", String("utf-8")), ("config_operation", Int8), ("value", String("utf-8"))),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


class _AlterRequest(Request[_AlterRequest_v0]):  # type: ignore[misc]
    API_KEY: ClassVar[int] = 44

    def __init__(self, resources: list[Any]) -> None:
        self._resources = resources

    def build(self, request_struct_class: type[_AlterRequest_v0]) -> Any:
        return request_struct_class(self._resources, False)

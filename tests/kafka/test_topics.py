"""What differs between the topics as wanted and as they are is seen, and put right only where that is harmless."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agnt5_engine.transport.base import BadTopicError, TopicInfo, TopicSpec
from agnt5_engine.transport.kafka import KafkaLog
from agnt5_engine.transport.kafka.topics import REPLICATION, Change, Contradiction, Create, plan, wanted

Fresh = Callable[[str], str]
JOURNAL = TopicSpec("journal", 8, "delete", 86_400_000, 1_500_000, log_append_time=True)


def as_is(replicas: int = 3, partitions: int = 8, **differing: str) -> dict[str, TopicInfo]:
    config = {**wanted(JOURNAL, replicas), REPLICATION: str(replicas)}
    config.update({name.replace("_", "."): value for name, value in differing.items()})
    return {"journal": TopicInfo("journal", partitions, config)}


def test_nothing_is_to_be_done_for_topics_as_wanted_or_better() -> None:
    assert plan([JOURNAL], as_is(), 3) == []
    assert plan([JOURNAL], as_is(retention_ms="-1", max_message_bytes="9000000", min_insync_replicas="3"), 3) == []
    assert plan([JOURNAL], as_is(replicas=1), 1) == []


def test_a_missing_topic_is_created() -> None:
    assert plan([JOURNAL], {}, 3) == [Create(JOURNAL, 3)]


@pytest.mark.parametrize(
    ("setting", "present", "value"),
    [
        ("retention.ms", "3600000", "86400000"),
        ("retention.bytes", "1000000", "-1"),
        ("max.message.bytes", "1048588", "1500000"),
        ("message.timestamp.type", "CreateTime", "LogAppendTime"),
        ("unclean.leader.election.enable", "true", "false"),
        ("min.insync.replicas", "1", "2"),
        ("compression.type", "zstd", "producer"),
    ],
)
def test_a_setting_that_would_lose_records_or_refuse_them_is_changed(setting: str, present: str, value: str) -> None:
    existing = as_is(**{setting.replace(".", "_"): present})
    assert plan([JOURNAL], existing, 3) == [Change("journal", setting, present, value)]


def test_another_number_of_partitions_is_a_contradiction_that_names_the_remedy() -> None:
    (step,) = plan([JOURNAL], as_is(partitions=4), 3)
    assert isinstance(step, Contradiction)
    assert "AGNT5_PARTITIONS=4" in step.reason


def test_a_compacted_journal_is_a_contradiction() -> None:
    (step,) = plan([JOURNAL], as_is(cleanup_policy="compact,delete"), 3)
    assert isinstance(step, Contradiction)
    assert "compaction may have removed records" in step.reason


async def test_a_created_topic_is_as_wanted_and_a_changed_one_becomes_so(log: KafkaLog, fresh: Fresh) -> None:
    name = fresh("journal")
    spec = TopicSpec(name, 3, "delete", 86_400_000, 1_500_000, log_append_time=True)
    await log.create([spec], None)
    await log.create([spec], None)
    assert plan([spec], await log.topics([name]), 1) == []
    more = TopicSpec(name, 3, "delete", None, 2_000_000, log_append_time=True)
    steps = plan([more], await log.topics([name]), 1)
    assert [str(step) for step in steps] == [
        f"change {name}: retention.ms from 86400000 to -1",
        f"change {name}: max.message.bytes from 1500000 to 2000000",
    ]
    await log.change([step for step in steps if isinstance(step, Change)])
    info = (await log.topics([name]))[name]
    assert plan([more], {name: info}, 1) == []
    assert info.config["message.timestamp.type"] == "LogAppendTime", "what was not named keeps its value"
    assert info.config[REPLICATION] == "1"


async def test_more_replicas_than_brokers_is_refused_with_the_remedy(log: KafkaLog, fresh: Fresh) -> None:
    with pytest.raises(BadTopicError, match="AGNT5_REPLICATION"):
        await log.create([TopicSpec(fresh("t"), 1, "delete", None, 1_000_000)], 3)

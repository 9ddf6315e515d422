"""What would lose data is refused, with the remedy; a partition that cannot go on says why, and the others go on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import NewTopic, RecordsToDelete
from aiokafka.structs import TopicPartition as KafkaPartition

from agnt5 import WorkflowContext
from agnt5.workflow import workflow
from agnt5_engine import topics
from agnt5_engine.partition.recovery import PartitionStopped, Place, check_journal, restore
from agnt5_engine.processor import Processor
from agnt5_engine.records.avro import encode
from agnt5_engine.records.journal import CancelRequested
from agnt5_engine.transport.base import BadTopicError, Message, TopicPartition, TopicSpec
from tests.group.inside import joined, ready, settings_for, start, until
from tests.group.world import opened
from tests.kafka.administrator import administrator

GOOD = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime", "max.message.bytes": "9000000"}


@pytest.fixture(autouse=True)
def waits() -> None:
    @workflow(name="waits")
    async def waits(ctx: WorkflowContext) -> str:
        return await ctx.wait_for_signal("go")


@pytest.mark.parametrize(
    ("name", "partitions", "config", "remedy"),
    [
        ("journal", 3, {}, "Set AGNT5_PARTITIONS=3"),
        ("journal", 2, {"cleanup.policy": "compact"}, "Set cleanup.policy=delete"),
        ("journal", 2, {"cleanup.policy": "compact,delete"}, "Set cleanup.policy=delete"),
        ("journal", 2, {"retention.ms": "60000"}, "Set retention.ms="),
        ("journal", 2, {"retention.bytes": "100000"}, "Set retention.bytes=-1"),
        ("journal", 2, {"message.timestamp.type": "CreateTime"}, "Set message.timestamp.type=LogAppendTime"),
        ("journal", 2, {"max.message.bytes": "1000"}, "Set max.message.bytes="),
        ("state-changelog", 2, {"cleanup.policy": "compact,delete"}, "Set cleanup.policy=compact"),
        ("state-changelog", 5, {"cleanup.policy": "compact"}, "Set AGNT5_PARTITIONS=5"),
    ],
)
async def test_topics_that_contradict_the_engine_are_refused_at_start_with_the_remedy(
    kafka: str, tmp_path: Path, name: str, partitions: int, config: dict[str, str], remedy: str
) -> None:
    settings = settings_for(kafka, tmp_path)
    topic = f"{settings.topic_prefix}{name}"
    async with administrator(kafka) as admin:
        await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=GOOD | config)])
    with pytest.raises(BadTopicError) as refused:
        async with joined(settings, wait=False):
            pass
    assert topic in str(refused.value)
    assert remedy in str(refused.value)
    async with opened(kafka) as log:
        assert list(await log.topics([spec.name for spec in topics.specs(settings)])) == [topic], "nothing was made"


async def test_tables_of_another_number_of_partitions_than_the_journal_has_are_refused(
    kafka: str, tmp_path: Path
) -> None:
    settings = settings_for(kafka, tmp_path)
    async with opened(kafka) as log:
        for spec in topics.specs(settings):
            await log.create([replace(spec, partitions=4 if "changelog" in spec.name else 2)], 1)
    with pytest.raises(BadTopicError, match="Make both anew with one number of partitions"):
        async with joined(settings, wait=False):
            pass


async def test_missing_topics_are_named_where_they_may_not_be_created(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, tmp_path, create_topics=False)
    with pytest.raises(BadTopicError, match=r"journal.*state-changelog.*agnt5 topics plan"):
        async with joined(settings, wait=False):
            pass
    async with opened(kafka) as log:
        await log.create(topics.specs(settings), 1)
    async with joined(settings) as processor:
        assert await start(processor, "waits")


async def _start_in_each(processor: Processor) -> dict[int, str]:
    """One waiting run for each partition."""
    found: dict[int, str] = {}
    while len(found) < processor.settings.partitions:
        run_id = await start(processor, "waits")
        found[processor.partition_of(run_id)] = run_id
    return found


async def _cut(kafka: str, settings: Any, partition: int) -> None:
    """Append to a journal partition, and delete everything before the last record."""
    async with opened(kafka) as log:
        source = TopicPartition(settings.journal_topic, partition)
        command = encode(CancelRequested("0" * 20, "c", False))
        await log.append(source, [Message(b"0" * 20, command)] * 5)
        _, end = await log.bounds(source)
    async with administrator(kafka) as admin:
        await admin.delete_records({KafkaPartition(*source): RecordsToDelete(before_offset=end - 1)})


async def test_a_partition_whose_journal_was_cut_stops_and_says_so_while_the_others_go_on(
    kafka: str, tmp_path: Path
) -> None:
    settings = settings_for(kafka, tmp_path)
    async with joined(settings, leave=False) as processor:
        held = await _start_in_each(processor)
    await _cut(kafka, settings, 0)
    async with joined(settings, wait=False) as processor:
        await until(lambda: processor.owned() == {1} and "begins at offset" in str(processor.trouble()))
        assert dict(processor.readiness()) == {0: False, 1: True}
        assert "partition 0" in str(processor.trouble())
        assert "deleting the partition's changelog and journal together" in str(processor.trouble())
        await processor.signal(held[1], "go", "on", None)
        assert (await processor.finished(held[1])).output == "on"


async def test_a_journal_made_anew_under_a_running_processor_stops_its_partitions(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, tmp_path, partitions=1)
    async with joined(settings) as processor:
        await _start_in_each(processor)
        async with administrator(kafka) as admin:
            await admin.delete_topics([settings.journal_topic])
        async with opened(kafka) as log:
            while await log.topics([settings.journal_topic]):
                await asyncio.sleep(0.05)
            await log.create([spec for spec in topics.specs(settings) if spec.name == settings.journal_topic], 1)
        await until(lambda: "records were lost" in str(processor.trouble()), lambda: processor.trouble(), 60)
        assert processor.owned() == frozenset()


async def test_state_of_another_cluster_of_another_journal_or_of_more_partitions_is_not_gone_on_from(
    kafka: str, tmp_path: Path
) -> None:
    settings = settings_for(kafka, tmp_path, partitions=1)
    async with joined(settings) as processor:
        await _start_in_each(processor)
        cluster = processor._cluster_id
    async with opened(kafka) as log:
        journal, changelog = TopicPartition(settings.journal_topic, 0), TopicPartition(settings.changelog_topic, 0)
        place = Place(log, journal, changelog, cluster, tmp_path / "own", 1)
        checkpointer = log.checkpointer("any", settings.group, changelog)
        restored = await restore(place, checkpointer)
        restored.table.close()
        await check_journal(place, restored.marker)
        with pytest.raises(PartitionStopped, match="Point AGNT5_BROKER at the old cluster"):
            await check_journal(replace(place, cluster_id="elsewhere"), restored.marker)
        with pytest.raises(PartitionStopped, match="written with 1 partitions"):
            await check_journal(replace(place, partitions=2), restored.marker)
        other = TopicPartition(f"{settings.topic_prefix}other", 0)
        await log.create([TopicSpec(other.topic, 1, "delete", None, 10**6, True)], 1)
        await log.append(other, [Message(b"k", encode(CancelRequested("r", "c", False)))] * 50)
        with pytest.raises(PartitionStopped, match="is not the one that the state was made from"):
            await check_journal(replace(place, journal=other), restored.marker)


async def test_local_tables_of_a_changelog_that_was_made_anew_are_thrown_away(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, tmp_path, partitions=1, checkpoint_interval=0.1)
    async with joined(settings, leave=False) as processor:
        old = await start(processor, "waits")
    names = [settings.journal_topic, settings.changelog_topic]
    async with administrator(kafka) as admin:
        await admin.delete_topics(names)
    async with opened(kafka) as log:
        while await log.topics(names):
            await asyncio.sleep(0.05)
    # Another processor, of another machine, is the first to use the new topics, and writes more than there was.
    async with joined(settings.model_copy(update={"data_dir": tmp_path / "b"})) as other:
        new = [await start(other, "waits") for _ in range(50)]
        await ready(other)
    async with joined(settings) as processor:
        assert {run.run_id for run in (await processor.runs(limit=100)).items} == set(new)
        with pytest.raises(LookupError):
            await processor.run(old)

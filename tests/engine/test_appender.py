"""What is on its way into the journal, and what the log brings of it before the ack."""

from __future__ import annotations

import asyncio
from typing import Any

from agnt5_engine.partition.appender import Appender
from agnt5_engine.records.journal import TimerFired
from agnt5_engine.transport.base import Ack, Message, TopicPartition

JOURNAL = TopicPartition("journal", 0)


class SlowLog:
    """Acks when it is told to."""

    def __init__(self) -> None:
        self.given: list[Message] = []
        self.ack = asyncio.Event()

    async def append(self, target: TopicPartition, messages: list[Message]) -> Ack:
        self.given = messages
        await self.ack.wait()
        self.ack.clear()
        return Ack(0, 1)


async def test_records_in_flight_are_known_by_their_bytes_once_each_and_in_order_whatever_stands_between() -> None:
    log: Any = SlowLog()
    acked: list[Any] = []
    appender = Appender(log, JOURNAL, lambda ack, records: acked.extend(records), lambda error: None)
    records = [TimerFired(f"run{n // 2}", "0", 7) for n in range(4)]  # each twice
    for record in records:
        appender.append(record.run_id, record)
    await asyncio.sleep(0)
    brought = [message.value for message in log.given]
    found = [appender.sent(value) for value in (b"another's", brought[0], None, brought[1], b"another's", *brought[2:])]
    assert [record for record in found if record is not None] == records
    assert [record is None for record in found] == [True, False, True, False, True, False, False]
    assert appender.sent(brought[0]) is None
    appender.append("run", records[0])
    log.ack.set()
    await asyncio.sleep(0.01)
    assert acked == records
    assert appender.sent(log.given[0].value) == records[0]
    log.ack.set()
    await appender.flushed()
    await appender.close()

"""A processor whose broker has not been found yet says so to whoever asks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agnt5_engine import processor as module
from agnt5_engine.processor import Processor
from agnt5_engine.settings import load_settings
from agnt5_engine.slots import Slot
from agnt5_engine.transport.base import RetriableError
from agnt5_engine.transport.kafka import KafkaLog


async def test_events_and_dead_letters_are_refused_for_now_while_the_broker_has_not_been_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(broker="kafka://127.0.0.1:1", data_dir=tmp_path)
    monkeypatch.setattr(module, "open_log", lambda *_: KafkaLog(settings.kafka_options(), patience=0.2))
    slot = Slot(tmp_path)
    processor = Processor(settings, slot=slot, url="http://127.0.0.1:2")
    joining = asyncio.create_task(processor.join())
    await asyncio.sleep(0)
    try:
        for asked in (
            processor.publish("topic", b"1", None, ()),
            processor.dead_letters(),
            processor.dead_letter("0-1"),
            processor.redrive("0-1"),
        ):
            with pytest.raises(RetriableError):
                await asked
    finally:
        joining.cancel()
        await asyncio.wait((joining,))
        await processor.close()
        slot.release()

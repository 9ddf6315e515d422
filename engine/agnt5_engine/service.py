"""The process around a processor: modules, HTTP, signals, watchdog, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence

import structlog

from agnt5 import registry
from agnt5_engine.garbage import collect_seldom
from agnt5_engine.gateway.app import create_app
from agnt5_engine.gateway.catalog import RegistryCatalog
from agnt5_engine.gateway.serve import HttpServer
from agnt5_engine.logs import configure_logs
from agnt5_engine.processor import Processor
from agnt5_engine.records.avro import seal_with
from agnt5_engine.settings import Settings
from agnt5_engine.slots import Slot
from agnt5_engine.watchdog import Watchdog

log = structlog.stdlib.get_logger(__name__)


async def run_processor(settings: Settings, modules: Sequence[str], *, leave: bool = False) -> None:
    """Load the modules, serve HTTP, join the group, and work until SIGTERM or SIGINT. With `leave`, the group forgets
    this member on the way out. Raises what makes it impossible to go on."""
    configure_logs(settings)
    seal_with(settings.payload_keys)
    for module in modules:
        registry.load(module)
    collect_seldom()
    slot = Slot(settings.data_dir)
    server = HttpServer(settings)
    try:
        processor = Processor(settings, slot=slot, url=server.bind())
        log.info("processor.starting", instance=processor.instance_id, slot=slot.number, broker=settings.broker)
        await server.start(create_app(processor, settings, RegistryCatalog()))
        stop = asyncio.Event()
        watchdog = Watchdog()
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, stop.set)
        try:
            await _until(stop, processor)
        finally:
            await processor.close(leave=leave)
            watchdog.close()
            log.info("processor.stopped", instance=processor.instance_id)
    finally:
        await server.stop()
        slot.release()


async def _until(stop: asyncio.Event, processor: Processor) -> None:
    """Work until asked to stop, or until the membership cannot go on; raises why."""
    stopping = asyncio.ensure_future(stop.wait())
    working = asyncio.ensure_future(_work(processor))
    try:
        await asyncio.wait((stopping, working), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (stopping, working):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _work(processor: Processor) -> None:
    await processor.join()
    await processor.membership.failed()

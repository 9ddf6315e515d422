"""The process around a processor: modules, HTTP, signals, watchdog, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from agnt5 import registry
from agnt5_engine.garbage import collect_seldom
from agnt5_engine.gateway.listening import bind
from agnt5_engine.logs import configure_logs
from agnt5_engine.processor import Processor
from agnt5_engine.records.avro import seal_with
from agnt5_engine.settings import Settings
from agnt5_engine.slots import Slot
from agnt5_engine.watchdog import Watchdog

if TYPE_CHECKING:
    from fastapi import FastAPI

    from agnt5_engine.gateway.serve import HttpServer

log = structlog.stdlib.get_logger(__name__)


async def run_processor(settings: Settings, modules: Sequence[str], *, leave: bool = False) -> None:
    """Load the modules, serve HTTP, join the group, and work until SIGTERM or SIGINT. With `leave`, the group forgets
    this member on the way out. Raises what makes it impossible to go on."""
    configure_logs(settings)
    seal_with(settings.payload_keys)
    for module in modules:
        registry.load(module)
    with contextlib.ExitStack() as held:
        slot = Slot(settings.data_dir)
        held.callback(slot.release)
        address = held.enter_context(contextlib.closing(bind(settings)))
        processor = Processor(settings, slot=slot, url=settings.advertised_url_for(address.getsockname()[1]))
        log.info("processor.starting", instance=processor.instance_id, slot=slot.number, broker=settings.broker)
        await _work_until_stopped(processor, settings, address, leave)


async def _work_until_stopped(processor: Processor, settings: Settings, address: socket.socket, leave: bool) -> None:
    stop = asyncio.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, stop.set)
    server: HttpServer | None = None
    watchdog = Watchdog()
    # The gateway is loaded while the broker is asked: both take some 0.3 s, one of the processor, one of waiting.
    working = asyncio.ensure_future(_work(processor))
    try:
        serving, app = await asyncio.to_thread(_load_gateway, processor, settings, address)
        server = serving
        await serving.start(app)
        collect_seldom()
        await _either(stop, working)
    finally:
        working.cancel()
        await asyncio.wait((working,))
        await processor.close(leave=leave)
        watchdog.close()
        log.info("processor.stopped", instance=processor.instance_id)
        if server is not None:
            await server.stop()


def _load_gateway(processor: Processor, settings: Settings, address: socket.socket) -> tuple[HttpServer, FastAPI]:
    from agnt5_engine.gateway.app import create_app
    from agnt5_engine.gateway.serve import HttpServer

    return HttpServer(settings, address), create_app(processor, settings)


async def _either(stop: asyncio.Event, working: asyncio.Future[None]) -> None:
    """Until asked to stop, or until the membership cannot go on; raises why."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((stopping, working), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        stopping.cancel()


async def _work(processor: Processor) -> None:
    await processor.join()
    await processor.membership.failed()

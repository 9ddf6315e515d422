"""A bad network before a good broker: answers come late, connections are cut, acks are lost."""

from __future__ import annotations

import asyncio
import random
import struct

_PRODUCE, _END_TXN = 0, 26  # API keys of Kafka's protocol: the requests whose fate must not be guessed


class Proxy:
    """Stands where the broker says it is (`advertised.listeners`), and passes everything on until told otherwise."""

    def __init__(self, port: int, seed: int = 1) -> None:
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self.delay = 0.0  # seconds that every request and every answer is held back, on average
        self.loss = 0.0  # of the acks of writes, how many never arrive (their connection is cut instead)
        self.lost = 0
        self._random = random.Random(seed)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def stop(self) -> None:
        self._server.close()
        while self._tasks:
            self.cut()
            await asyncio.wait(self._tasks, timeout=0.1)

    def cut(self) -> None:
        """Every connection breaks off, with what is on its way."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _accept(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        writers = [client_out]
        self._open.add(client_out)
        writes: set[int] = set()  # correlation IDs of requests whose ack may be lost
        try:
            broker_in, broker_out = await asyncio.open_connection("127.0.0.1", self._broker_port)
            writers.append(broker_out)
            self._open.add(broker_out)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._requests(client_in, broker_out, writes))
                pumps.create_task(self._answers(broker_in, client_out, writes))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for writer in writers:
                self._open.discard(writer)
                writer.transport.abort()

    async def _requests(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, writes: set[int]) -> None:
        while True:
            frame = await _frame(source)
            kind, _, correlation = struct.unpack_from(">hhi", frame)
            if kind in (_PRODUCE, _END_TXN):
                writes.add(correlation)
            await self._pass_on(frame, sink)

    async def _answers(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, writes: set[int]) -> None:
        while True:
            frame = await _frame(source)
            (correlation,) = struct.unpack_from(">i", frame)
            if correlation in writes:
                writes.discard(correlation)
                if self._random.random() < self.loss:
                    self.lost += 1
                    raise ConnectionResetError("the broker has it, and nobody will hear of it")
            await self._pass_on(frame, sink)

    async def _pass_on(self, frame: bytes, sink: asyncio.StreamWriter) -> None:
        if self.delay:
            await asyncio.sleep(self._random.uniform(0, 2 * self.delay))
        sink.write(struct.pack(">i", len(frame)) + frame)
        await sink.drain()


async def _frame(source: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">i", await source.readexactly(4))
    return await source.readexactly(length)

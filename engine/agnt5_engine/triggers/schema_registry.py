"""Events in Confluent's wire format: a zero byte, a schema ID (4 bytes, big endian), and the body.

Schemas are fetched by ID over the registry's HTTP interface, once: an ID means the same schema for ever. Avro (with
references) and JSON Schema bodies are read; Protobuf is not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any
from urllib.parse import quote

import fastavro
import httpx
import structlog
from pydantic_core import from_json

from agnt5_engine.transport.base import Record

log = structlog.get_logger()

HEADER = 5
_LONGEST_WAIT = 10.0


class SchemaRegistry:
    """A registry at `url` (user and password may stand in it). `transport` is for tests."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"), timeout=10, headers={"accept": "application/vnd.schemaregistry.v1+json"},
            transport=transport,
        )  # fmt: skip
        self._readers: dict[int, Callable[[bytes], Any]] = {}
        self._unusable: dict[int, str] = {}
        self._fetching: dict[int, asyncio.Task[None]] = {}

    async def fetch(self, records: Iterable[Record]) -> None:
        """Fetch the schemas that these records need and that are not known yet. Waits, however long, while the registry
        does not answer: an event is not given up for that."""
        for record in records:
            value = record.value
            if value is not None and value[:1] == b"\0" and len(value) > HEADER:
                id = int.from_bytes(value[1:HEADER], "big")
                if id not in self._readers and id not in self._unusable:
                    await self._fetch(id)

    def decode(self, value: bytes) -> Any:
        """Raises LookupError for an ID that the registry does not have, ValueError (and what fastavro raises) for a
        body that does not fit its schema."""
        id = int.from_bytes(value[1:HEADER], "big")
        reader = self._readers.get(id)
        if reader is None:
            # The registry may have it by the time someone redrives the event.
            raise LookupError(self._unusable.pop(id, f"schema {id} was not fetched"))
        return reader(value)

    async def close(self) -> None:
        for task in self._fetching.values():
            task.cancel()
        await asyncio.gather(*self._fetching.values(), return_exceptions=True)
        await self._client.aclose()

    async def _fetch(self, id: int) -> None:
        task = self._fetching.get(id)
        if task is None:
            task = self._fetching[id] = asyncio.create_task(self._load(id))
            task.add_done_callback(lambda _: self._fetching.pop(id, None))
        await asyncio.shield(task)

    async def _load(self, id: int) -> None:
        found = await self._get(f"/schemas/ids/{id}")
        if found is None:
            self._unusable[id] = f"the registry has no schema {id}"
            return
        match found.get("schemaType", "AVRO"):
            case "AVRO":
                known: dict[str, Any] = {}
                missing = await self._references(found.get("references", []), known)
                if missing is not None:
                    self._unusable[id] = f"schema {id} refers to {missing}, which the registry does not have"
                    return
                try:
                    self._readers[id] = _avro_reader(fastavro.parse_schema(json.loads(found["schema"]), known))
                except Exception as error:  # whatever a schema that nobody checked makes of the parser
                    self._unusable[id] = f"schema {id} cannot be used: {type(error).__name__}: {error}"
            case "JSON":
                self._readers[id] = _json_body
            case other:
                self._unusable[id] = f"schema {id} is {other}; AVRO and JSON are read"

    async def _references(self, references: list[dict[str, Any]], known: dict[str, Any]) -> str | None:
        """Parse what a schema refers to into `known`; the first that is not there, else None."""
        for reference in references:
            subject, version = str(reference["subject"]), reference["version"]
            found = await self._get(f"/subjects/{quote(subject, safe='')}/versions/{version}")
            if found is None:
                return f"{subject} version {version}"
            missing = await self._references(found.get("references", []), known)
            if missing is not None:
                return missing
            if str(reference["name"]) not in known:
                fastavro.parse_schema(json.loads(found["schema"]), known)
        return None

    async def _get(self, path: str) -> dict[str, Any] | None:
        """None: there is no such thing. Waits while the registry is away."""
        delay = 0.2
        while True:
            try:
                answer = await self._client.get(path)
                if answer.status_code == 404:
                    return None
                answer.raise_for_status()
                found: dict[str, Any] = answer.json()
                return found
            except (httpx.HTTPError, ValueError) as error:
                log.warning("schema_registry.retry", path=path, error=str(error) or type(error).__name__, delay=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_WAIT)


def _avro_reader(schema: Any) -> Callable[[bytes], Any]:
    def read(value: bytes) -> Any:
        body = BytesIO(value)
        body.seek(HEADER)
        return fastavro.schemaless_reader(body, schema, None)

    return read


def _json_body(value: bytes) -> Any:
    return from_json(value[HEADER:], allow_inf_nan=False)

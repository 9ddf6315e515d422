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
from fastavro import _read_py
from pydantic_core import from_json

from agnt5_engine.transport.base import Record

log = structlog.stdlib.get_logger(__name__)

HEADER = 5
_LONGEST_WAIT = 10.0
_UNUSABLE = 1000
"""At most so many schemas are remembered of which it is known why they cannot be used."""


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
        does not answer: an event is not given up for that. One that could not be used is fetched anew: the registry may
        have it by the time someone redrives the event."""
        values = [r.value for r in records if r.value is not None and r.value[:1] == b"\0" and len(r.value) > HEADER]
        for id in {int.from_bytes(value[1:HEADER], "big") for value in values}:
            if id not in self._readers:
                await self._fetch(id)

    def decode(self, value: bytes) -> Any:
        """Raises LookupError for an ID that the registry does not have, ValueError (and what fastavro raises) for a
        body that does not fit its schema."""
        id = int.from_bytes(value[1:HEADER], "big")
        reader = self._readers.get(id)
        if reader is None:
            raise LookupError(self._unusable.get(id, f"schema {id} was not fetched"))
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
        try:
            problem = await self._read(id)
        except Exception as error:  # whatever a schema that nobody checked makes of the parser
            problem = f"schema {id} cannot be used: {type(error).__name__}: {error}"
        if problem is not None:
            if len(self._unusable) >= _UNUSABLE:
                self._unusable.clear()
            self._unusable[id] = problem

    async def _read(self, id: int) -> str | None:
        """Have its reader; or why it cannot be used."""
        found = await self._get(f"/schemas/ids/{id}")
        if found is None:
            return f"the registry has no schema {id}"
        match found.get("schemaType") or "AVRO":
            case "AVRO":
                known: dict[str, Any] = {}
                missing = await self._references(found, known)
                if missing is not None:
                    return f"schema {id} refers to {missing}, which the registry does not have"
                schema = fastavro.parse_schema(json.loads(found["schema"]), known)
                self._readers[id] = _avro_reader(schema, known)
            case "JSON":
                self._readers[id] = _json_body
            case other:
                return f"schema {id} is {other}; AVRO and JSON are read"
        return None

    async def _references(self, schema: dict[str, Any], known: dict[str, Any]) -> str | None:
        """Parse what a schema refers to into `known`; the first that is not there, else None."""
        for reference in schema.get("references") or ():
            subject, version = str(reference["subject"]), reference["version"]
            found = await self._get(f"/subjects/{quote(subject, safe='')}/versions/{version}")
            if found is None:
                return f"{subject} version {version}"
            missing = await self._references(found, known)
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
                found = answer.json()
                if isinstance(found, dict):
                    return found
                raise ValueError("its answer is no schema")
            except (httpx.HTTPError, ValueError) as error:
                log.warning("schema_registry.retry", path=path, error=str(error) or type(error).__name__, delay=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_WAIT)


def _avro_reader(schema: Any, known: dict[str, Any]) -> Callable[[bytes], Any]:
    """`known`: the named types that the schema has or refers to."""
    # A value of a type that holds itself may be nested so deep that the reader in C overflows the stack.
    reader = _read_py.schemaless_reader if _holds_itself(schema, known, (), set()) else fastavro.schemaless_reader

    def read(value: bytes) -> Any:
        body = BytesIO(value)
        body.seek(HEADER)
        return reader(body, schema, None)

    return read


def _holds_itself(schema: Any, known: dict[str, Any], inside: tuple[str, ...], seen: set[str]) -> bool:
    """Whether some named type, `inside` which this schema is, comes up in it again."""
    match schema:
        case str():
            if schema in inside:
                return True
            if schema in seen or schema not in known:
                return False
            seen.add(schema)
            return _holds_itself(known[schema], known, inside, seen)
        case list():
            return any(_holds_itself(one, known, inside, seen) for one in schema)
        case _:
            if "name" in schema:
                inside = (*inside, schema["name"])
            fields = [field["type"] for field in schema.get("fields", ())]
            parts = [schema["type"], schema.get("items"), schema.get("values"), *fields]
            return any(part is not None and _holds_itself(part, known, inside, seen) for part in parts)


def _json_body(value: bytes) -> Any:
    return from_json(value[HEADER:], allow_inf_nan=False)

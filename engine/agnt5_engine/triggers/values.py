"""What an event's bytes say: JSON, Avro of a schema registry, a run's outcome, or bytes for whoever takes those."""

from __future__ import annotations

from typing import Any, Final

from fastavro.schema import SchemaParseException
from pydantic_core import from_json, to_json

from agnt5.client.models import shown
from agnt5_engine.records.avro import MAGIC, RecordError, decode
from agnt5_engine.records.journal import RunOutcome
from agnt5_engine.transport.base import Record
from agnt5_engine.triggers.schema_registry import HEADER, SchemaRegistry

CONTENT_TYPE = "content-type"


class UndecodableError(ValueError):
    """The bytes are not what they claim to be. The message says what they look like and what to do."""


class Raw:
    """A value that is no JSON: only a workflow that takes bytes, or the envelope, can have it."""

    __slots__ = ("data", "problem")

    def __init__(self, data: bytes, problem: str) -> None:
        self.data: Final = data
        self.problem: Final = problem

    @property
    def value(self) -> str | bytes:
        """Text where it is UTF-8: what a filter sees."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return self.data


def value_of(record: Record, registry: SchemaRegistry | None) -> Any:
    """The record's value as JSON has it (a tombstone is None), or Raw. Raises UndecodableError.

    What a registry's schema is needed for must have been fetched (`SchemaRegistry.fetch`)."""
    data = record.value
    if data is None:
        return None
    first = data[:1]
    if first == b"\0" and len(data) > HEADER:
        return _registered(data, registry)
    if first == b"\xc3" and data[:2] == MAGIC:
        return _outcome(data)
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as error:
        kind = _content_type(record)
        if kind.startswith("text/"):
            try:
                return data.decode()
            except UnicodeDecodeError:
                return Raw(data, f"its content-type is {kind}, but it is not UTF-8")
        return Raw(data, f"it is not JSON: {error}" if data else "it is empty")


def plain(value: Any) -> Any:
    """A value that is not JSON yet (Avro's dates, decimals, bytes) as JSON has it."""
    return from_json(to_json(value, bytes_mode="base64", inf_nan_mode="null"))


def _content_type(record: Record) -> str:
    for name, value in record.headers:
        if name.lower() == CONTENT_TYPE and value:  # Kafka's may be null
            return value.decode(errors="replace").strip().lower()
    return ""


def _registered(data: bytes, registry: SchemaRegistry | None) -> Any:
    if registry is None:
        raise UndecodableError(
            "it looks like Confluent's wire format (a zero byte and a schema ID); set AGNT5_SCHEMA_REGISTRY_URL, then "
            "redrive it"
        )
    try:
        return plain(registry.decode(data))
    except SchemaParseException as error:
        raise UndecodableError(f"the schema it was written with cannot be used: {error}") from None
    except (ValueError, LookupError, EOFError, TypeError, OverflowError, ArithmeticError, RecursionError) as error:
        told = str(error) or type(error).__name__
        raise UndecodableError(f"it is in a schema registry's wire format: {told}") from None


def _outcome(data: bytes) -> Any:
    try:
        record = decode(data)
    except RecordError as error:
        raise UndecodableError(str(error)) from None
    if not isinstance(record, RunOutcome):
        raise UndecodableError(f"it is an engine's {type(record).__name__}, which is no event")
    return {**record._asdict(), "input": shown(record.input), "output": shown(record.output)}

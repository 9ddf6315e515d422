"""Records to bytes and back: Avro single-object encoding, one schema file per kind and version.

A value is `C3 01`, the CRC-64-AVRO fingerprint of its schema (little endian) and the Avro body (Avro 1.11
specification, "Single-object encoding"), so any reader that has `schemas/` can read it without a registry. Bytes of
every version ever released are read into today's NamedTuple of the kind; bytes are written with the newest version.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form
from pydantic import SecretStr

from agnt5_engine.records import journal, rows
from agnt5_engine.records.encoding import compiled
from agnt5_engine.records.sealing import MAGIC as SEALED
from agnt5_engine.records.sealing import AesGcm, PayloadCodec, SealError, parse_keys

MAGIC = b"\xc3\x01"
HEADER = 10


class RecordError(ValueError):
    """Bytes that are no record of ours: cut off, damaged, or of a schema newer than this code."""


class NewerRecordError(RecordError):
    """A record in order, of a schema newer than this code: it says something that others know how to read."""


NOT_FOR_US = (SealError, NewerRecordError)
"""Bytes that raise one of these are not damaged: with the key, or newer code, they can be read. Passing them over would
lose them."""


class _Version(NamedTuple):
    """One schema version of a kind, ready to read."""

    cls: type[Any]
    writer: Any
    reader: Any
    build: Callable[[dict[str, Any]], Any]


@cache
def schema_files() -> dict[str, dict[int, Any]]:
    """Every schema: kind -> version -> parsed JSON. From the wheel, or from the source tree beside `engine/`."""
    folder: Any = resources.files("agnt5_engine") / "schemas"
    if not folder.is_dir():
        folder = Path(__file__).parents[3] / "schemas"
    found: dict[str, dict[int, Any]] = {}
    for file in folder.iterdir():
        kind, _, rest = file.name.partition(".")
        if rest.endswith(".avsc"):
            found.setdefault(kind, {})[int(rest.removesuffix(".avsc"))] = json.loads(file.read_text("utf-8"))
    return found


def header_of(schema: Any) -> bytes:
    """The ten bytes in front of every value written with this schema."""
    return MAGIC + bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))


def record_types() -> dict[str, type[Any]]:
    """Every record and row by its name, which is that of its schema."""
    return {
        name: value
        for module in (journal, rows)
        for name, value in vars(module).items()
        if isinstance(value, type) and hasattr(value, "_fields") and value.__module__ == module.__name__
    }


def _builder(cls: type[Any]) -> Callable[[dict[str, Any]], Any]:
    """A function from fastavro's dict, which has the newest schema's fields in their order, to the NamedTuple, nested
    records too."""
    make = partial(tuple.__new__, cls)
    nested: dict[str, Callable[[dict[str, Any]], Any]] = {}
    for name, hint in get_type_hints(cls).items():
        for arg in get_args(hint):
            if hasattr(arg, "_fields"):
                nested[name] = _builder(arg)
    if not nested:
        return lambda d: make(d.values())

    def build(d: dict[str, Any]) -> Any:
        for name, of in nested.items():
            if d[name]:
                d[name] = [of(x) for x in d[name]]
        return make(d.values())

    return build


class _Encoders(dict[type[Any], Callable[[Any], bytes]]):
    """By the kind of record; each is compiled when it is first wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.newest: dict[type[Any], tuple[Any, bytes]] = {}

    def __missing__(self, cls: type[Any]) -> Callable[[Any], bytes]:
        made = self[cls] = compiled(*self.newest[cls])
        return made


def _load() -> tuple[_Encoders, dict[bytes, _Version]]:
    encoders = _Encoders()
    versions: dict[bytes, _Version] = {}
    types = record_types()
    for name, by_version in schema_files().items():
        cls, last = types[name], max(by_version)
        newest, build = fastavro.parse_schema(by_version[last]), _builder(cls)
        for number, schema in by_version.items():
            parsed = fastavro.parse_schema(schema)
            header = header_of(parsed)
            versions[header] = _Version(cls, parsed, None if number == last else newest, build)
            if number == last:
                encoders.newest[cls] = schema, header
    return encoders, versions


_ENCODERS, _VERSIONS = _load()


_codec: PayloadCodec | None = None


def use_codec(codec: PayloadCodec | None) -> None:
    """Seal what is written from now on, and open what is read. For the whole process; None: plain."""
    global _codec
    _codec = codec


def seal_with(keys: SecretStr | None) -> None:
    """Seal with the keys of AGNT5_PAYLOAD_KEYS, where they are set."""
    if keys is not None:
        use_codec(AesGcm(parse_keys(keys.get_secret_value())))


def _opened(data: bytes) -> bytes:
    """The Avro bytes of a value that may be sealed. Raises SealError."""
    if data[:2] != SEALED:
        return data
    if _codec is None:
        raise SealError("it is sealed, and AGNT5_PAYLOAD_KEYS is not set")
    return _codec.open(data)


def encode(record: Any) -> bytes:
    """Any record or row as Avro single-object bytes."""
    data = _ENCODERS[record.__class__](record)
    return data if _codec is None else _codec.seal(data)


def decode(data: bytes) -> Any:
    """The record or row that `data` holds. Raises RecordError, saying what is wrong with the bytes, and SealError where
    the key is not here."""
    version = _VERSIONS.get(data[:HEADER])
    if version is None:
        data = _opened(data)
        version = _VERSIONS.get(data[:HEADER])
        if version is None:
            raise _unknown(data)
    try:
        body = BytesIO(data)
        body.seek(HEADER)
        return version.build(fastavro.schemaless_reader(body, version.writer, version.reader))
    except (EOFError, ValueError, IndexError, OverflowError, MemoryError, UnicodeDecodeError, TypeError) as e:
        raise RecordError(f"damaged {version.cls.__name__}: {type(e).__name__}: {e}") from e


def decode_journal(data: bytes) -> journal.JournalRecord:
    """The same for what stands in a journal: anything else is a RecordError."""
    record = decode(data)
    if not isinstance(record, journal.JournalRecord):
        raise RecordError(f"it is a {type(record).__name__}, which has no place in a journal")
    return record


def is_a(data: bytes, cls: type[Any]) -> bool:
    """Whether `data` holds a record or row of this kind, of whatever version; its body is not looked at."""
    version = _VERSIONS.get(_opened(data)[:HEADER])
    return version is not None and version.cls is cls


def head(data: bytes, fields: int) -> dict[str, Any]:
    """The first `fields` fields of a row, without reading the rest: an Avro body is its fields one after the other."""
    data = _opened(data)
    reader = _heads.get((data[:HEADER], fields))
    if reader is None:
        version = _VERSIONS.get(data[:HEADER])
        if version is None:
            raise _unknown(data)
        schema = {**version.writer, "fields": version.writer["fields"][:fields]}
        reader = _heads[data[:HEADER], fields] = fastavro.parse_schema({"type": "record", "name": "Head", **schema})
    body = BytesIO(data)
    body.seek(HEADER)
    try:
        found: dict[str, Any] = fastavro.schemaless_reader(body, reader, None)
    except (EOFError, ValueError, IndexError, UnicodeDecodeError) as e:
        raise RecordError(f"damaged row: {type(e).__name__}: {e}") from e
    return found


_heads: dict[tuple[bytes, int], Any] = {}


def _unknown(data: bytes) -> RecordError:
    if len(data) < HEADER or data[:2] != MAGIC:
        return RecordError(f"not an Avro single object: starts with {data[:HEADER].hex() or 'nothing'}")
    return NewerRecordError(
        f"schema fingerprint {data[2:HEADER].hex()} is of no version this code knows; "
        "it was written by a newer release: upgrade this processor"
    )

"""Records and rows as bytes: what is written is what is read, by this version and by every one that comes."""

from __future__ import annotations

import contextlib
import os
import random
from functools import reduce
from io import BytesIO
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agnt5_engine.records.avro import HEADER, RecordError, decode, encode, header_of, is_a, record_types, schema_files
from agnt5_engine.records.sealing import SealError

GOLDEN = Path(__file__).parent / "golden"
SCHEMAS = schema_files()


KINDS = record_types()
WRITTEN = {name: KINDS[name] for name in SCHEMAS}

# ------------------------------------------------------------------ schemas


def avro_of(hint: Any) -> Any:
    """The Avro type that stands for a type annotation; named records by their fields."""
    plain = {str: "string", bytes: "bytes", int: "long", bool: "boolean"}
    if hint in plain:
        return plain[hint]
    if get_origin(hint) is UnionType:
        other, none = get_args(hint)
        assert none is NoneType
        return ["null", avro_of(other)]
    if get_origin(hint) is list:
        return {"type": "array", "items": avro_of(get_args(hint)[0])}
    if get_origin(hint) is dict:
        key, value = get_args(hint)
        assert key is str
        return {"type": "map", "values": avro_of(value)}
    return {"type": "record", "name": hint.__name__, "fields": fields_of(hint)}


def fields_of(cls: type[Any]) -> list[tuple[str, Any]]:
    hints = get_type_hints(cls)
    return [(name, avro_of(hints[name])) for name in cls._fields]  # type: ignore[attr-defined]


def plain_schema(schema: Any) -> Any:
    """A schema without what does not matter for the bytes."""
    if isinstance(schema, list):
        return [plain_schema(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    if schema["type"] == "record":
        fields = [(f["name"], plain_schema(f["type"])) for f in schema["fields"]]
        return {"type": "record", "name": schema["name"], "fields": fields}
    return {key: plain_schema(value) for key, value in schema.items()}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_the_newest_schema_has_the_fields_and_types_of_its_record(name: str) -> None:
    newest = SCHEMAS[name][max(SCHEMAS[name])]
    assert newest["namespace"] == "agnt5"
    assert plain_schema(newest) == {"type": "record", "name": name, "fields": fields_of(WRITTEN[name])}


def test_every_record_that_stands_alone_has_a_schema() -> None:
    parts = {
        arg.__name__ for cls in KINDS.values() for hint in get_type_hints(cls).values() for arg in get_args(hint)
        if hasattr(arg, "_fields")
    }  # fmt: skip
    assert {*KINDS} - {*SCHEMAS} <= parts


def test_schemas_have_fingerprints_of_their_own_and_no_version_is_left_out() -> None:
    headers = [header_of(schema) for versions in SCHEMAS.values() for schema in versions.values()]
    assert len({*headers}) == len(headers)
    for name, versions in SCHEMAS.items():
        assert sorted(versions) == list(range(1, len(versions) + 1)), name


def test_a_later_version_reads_what_an_earlier_one_wrote() -> None:
    """A field that came later has a default, as Avro's schema resolution wants it."""
    for name, versions in SCHEMAS.items():
        newest = {f["name"]: f for f in versions[max(versions)]["fields"]}
        for schema in versions.values():
            added = newest.keys() - {f["name"] for f in schema["fields"]}
            assert all("default" in newest[field] for field in added), (name, added)


# ------------------------------------------------------------------ round trips


LONGS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def values(hint: Any) -> st.SearchStrategy[Any]:
    plain = {str: TEXTS, bytes: st.binary(max_size=60), int: LONGS, bool: st.booleans(), NoneType: st.none()}
    if hint in plain:
        return plain[hint]
    if get_origin(hint) is UnionType:
        return reduce(or_, map(values, get_args(hint)))
    if get_origin(hint) is tuple:
        items, *rest = get_args(hint)
        if rest == [...]:
            return st.lists(values(items), max_size=3).map(tuple)
        return st.tuples(*map(values, get_args(hint)))
    if get_origin(hint) is list:
        return st.lists(values(get_args(hint)[0]), max_size=4)
    if get_origin(hint) is dict:
        return st.dictionaries(TEXTS, values(get_args(hint)[1]), max_size=4)
    return records(hint)


def records(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    return st.builds(cls, **{name: values(hints[name]) for name in cls._fields})  # type: ignore[attr-defined]


ANY = st.sampled_from(sorted(WRITTEN)).flatmap(lambda name: records(WRITTEN[name]))


@given(ANY)
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_what_is_read(record: Any) -> None:
    data = encode(record)
    read = decode(data)
    assert read == record
    assert type(read) is type(record)
    assert is_a(data, type(record))


@given(ANY)
@settings(max_examples=150, deadline=None)
def test_the_bytes_are_those_of_any_avro_library(record: Any) -> None:
    versions = SCHEMAS[type(record).__name__]
    schema = fastavro.parse_schema(versions[max(versions)])
    body = BytesIO()
    fastavro.schemaless_writer(body, schema, as_dict(record))
    # Maps may be written in any order: compare what is read.
    other = fastavro.schemaless_reader(BytesIO(encode(record)[HEADER:]), schema, None)
    assert other == fastavro.schemaless_reader(BytesIO(body.getvalue()), schema, None)


def as_dict(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: as_dict(v) for name, v in value._asdict().items()}
    return [as_dict(v) for v in value] if isinstance(value, list) else value


# ------------------------------------------------------------------ damage


def is_sound(record: Any) -> bool:
    """Every field is of its type."""
    hints = get_type_hints(type(record))
    return all(fits(value, hints[name]) for name, value in record._asdict().items())


def fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is UnionType:
        return any(fits(value, arg) for arg in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(fits(v, get_args(hint)[0]) for v in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(fits(v, get_args(hint)[1]) for v in value.values())
    return type(value) is hint and (not hasattr(value, "_fields") or is_sound(value))


def sound_or_refused(data: bytes) -> None:
    with contextlib.suppress(RecordError, SealError):  # SealError: it looks like one that is sealed
        assert is_sound(decode(data))


@given(ANY)
@settings(max_examples=150, deadline=None)
def test_a_record_that_was_cut_off_is_refused(record: Any) -> None:
    data = encode(record)
    for length in range(0, len(data), 1 + len(data) // 60):
        with pytest.raises(RecordError):
            decode(data[:length])


@given(ANY, st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_record_is_refused_or_read_as_another(record: Any, draw: st.DataObject) -> None:
    data = bytearray(encode(record))
    for _ in range(draw.draw(st.integers(1, 3))):
        bit = draw.draw(st.integers(0, len(data) * 8 - 1))
        data[bit // 8] ^= 1 << bit % 8
    sound_or_refused(bytes(data))


@given(st.sampled_from(sorted(WRITTEN)), st.binary(max_size=80))
@settings(max_examples=300, deadline=None)
def test_noise_behind_a_good_header_is_refused_or_read(name: str, noise: bytes) -> None:
    versions = SCHEMAS[name]
    sound_or_refused(header_of(versions[max(versions)]) + noise)


@given(st.binary(max_size=60))
def test_bytes_of_somebody_else_are_refused(data: bytes) -> None:
    with pytest.raises((RecordError, SealError)):
        decode(data)


def test_a_record_of_a_newer_release_is_refused_with_what_to_do() -> None:
    with pytest.raises(RecordError, match="upgrade this processor"):
        decode(b"\xc3\x01" + bytes(8) + b"body")


# ------------------------------------------------------------------ golden bytes


def example(cls: type[Any]) -> Any:
    """One record of a kind, always the same."""
    r = random.Random(cls.__name__)
    hints = get_type_hints(cls)
    return cls(**{name: _example(r, hints[name], name) for name in cls._fields})  # type: ignore[attr-defined]


def _example(r: random.Random, hint: Any, name: str) -> Any:
    if hint is str:
        return f"{name} é {r.randrange(100)}"
    if hint is bytes:
        return b'{"%s":%d}' % (name.encode(), r.randrange(100))
    if hint is bool:
        return True
    if hint is int:
        return r.choice([0, 1, -1, 1_700_000_000_123, 2**40])
    if get_origin(hint) is UnionType:
        return _example(r, get_args(hint)[0], name) if r.random() < 0.7 else None
    if get_origin(hint) is list:
        return [_example(r, get_args(hint)[0], name) for _ in range(2)]
    if get_origin(hint) is dict:
        return {f"key{i}": _example(r, get_args(hint)[1], name) for i in range(2)}
    return example(hint)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_bytes_that_were_written_once_can_be_read_for_ever(name: str) -> None:
    """`golden/<kind>.<version>` holds what that version wrote, in hexadecimal. A released version does not change:
    a new field makes a new version, and `AGNT5_GOLDEN=write` adds its file."""
    for version in SCHEMAS[name]:
        file = GOLDEN / f"{name}.{version}"
        newest = version == max(SCHEMAS[name])
        if newest and os.environ.get("AGNT5_GOLDEN") == "write":
            GOLDEN.mkdir(exist_ok=True)
            file.write_text(encode(example(WRITTEN[name])).hex() + "\n", "ascii")
        data = bytes.fromhex(file.read_text("ascii"))
        record = decode(data)
        assert type(record) is WRITTEN[name]
        if newest:
            assert record == example(WRITTEN[name])
            assert encode(record) == data


def test_golden_bytes_are_of_schemas_that_exist() -> None:
    assert {file.name for file in GOLDEN.iterdir()} == {f"{n}.{v}" for n, versions in SCHEMAS.items() for v in versions}

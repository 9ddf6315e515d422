"""Avro bodies written by functions made for one schema each.

fastavro writes from dicts and interprets the schema per value; a NamedTuple has to become a dict first. A step costs
at least one record, so this is on the hot path: a function compiled per schema takes a quarter of the time
(`benchmarks/records.py` prints both). It covers what `schemas/` uses: records, arrays and maps of them, string,
bytes, long, boolean, and unions with null. Tests hold it to fastavro's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from itertools import groupby
from typing import Any, TypeVar

T = TypeVar("T")

# A long is zig-zagged, then written 7 bits at a time, lowest first (Avro specification, "Binary encoding"). Two such
# groups at once come from a table: as the last of a number, or with more to follow.
_LAST = [bytes((z,)) if z < 128 else bytes((z & 127 | 128, z >> 7)) for z in range(1 << 14)]
_MORE = [bytes((z & 127 | 128, z >> 7 | 128)) for z in range(1 << 14)]


def _long(n: int) -> bytes:
    """One that is not among `_LONGS`."""
    z = (n << 1) ^ (n >> 63)
    found = b""
    while z >= 1 << 14:
        found += _MORE[z & 0x3FFF]
        z >>= 14
    return _remembered(_LONGS, n, found + _LAST[z])


_LONGS: dict[int, bytes] = {}
"""Most long numbers come again at once: the time of a batch of records, the digest of an input."""


def _string(s: str) -> bytes:
    """One that is not among `_STRINGS`."""
    data = s.encode()
    found = _size(data) + data
    return _remembered(_STRINGS, s, found) if len(data) <= _SHORT else found


_STRINGS: dict[str, bytes] = {}
"""Most strings come again at once: names, paths, the ID of a run in each of its rows."""
_SHORT = 100
_MOST = 10_000


def _remembered(known: dict[T, bytes], value: T, found: bytes) -> bytes:
    if len(known) >= _MOST:
        known.clear()
    known[value] = found
    return found


def _size(things: Sized) -> bytes:
    size = len(things)
    return _LAST[size << 1] if size < 1 << 13 else _long(size)


def _boolean(value: bool) -> bytes:
    return b"\1" if value else b"\0"


def compiled(schema: Any, header: bytes) -> Callable[[Any], bytes]:
    """A function from a NamedTuple with the schema's fields, in their order, to `header` and the Avro body."""
    names: dict[str, Any] = {
        "_long": _long,
        "_longs": _LONGS,
        "_last": _LAST,
        "_strings": _STRINGS,
        "_string": _string,
        "_size": _size,
        "_boolean": _boolean,
        "_join": b"".join,
        "_header": header,
    }
    _define(schema, names)
    fields = ", ".join(f["name"] for f in schema["fields"])
    parts = _fields(schema["fields"], names)
    source = f"def encode(record):\n    {fields}, = record\n    return _join((_header, {parts},))\n"
    exec(compile(source, f"<Avro {schema['name']}>", "exec"), names)
    made: Callable[[Any], bytes] = names["encode"]
    return made


def _define(schema: Any, names: dict[str, Any]) -> None:
    """Make the functions that nested records, arrays, maps and unions call."""
    match schema:
        case {"type": "record", "name": name, "fields": fields}:
            for field in fields:
                _define(field["type"], names)
            if f"_record_{name}" not in names:
                given = ", ".join(f["name"] for f in fields)
                parts = _fields(fields, names)
                source = f"def _record_{name}(record):\n    {given}, = record\n    return _join(({parts},))\n"
                exec(compile(source, f"<Avro {name}>", "exec"), names)
        case {"type": "array", "items": inner} | {"type": "map", "values": inner}:
            _define(inner, names)
        case list():
            for branch in schema:
                _define(branch, names)
        case _:
            pass


def _fields(fields: Any, names: dict[str, Any]) -> str:
    """Python that encodes the fields, as items of a tuple. Optional texts in a row are mostly all absent."""
    parts = []
    for optional, group in groupby(fields, key=lambda f: f["type"] == ["null", "string"]):
        each = [(f["name"], _expression(f["type"], f["name"], names)) for f in group]
        if optional and len(each) > 1:
            given = " is ".join(name for name, _ in each)
            joined = " + ".join(part for _, part in each)
            parts.append(f"({bytes(len(each))!r} if {given} is None else {joined})")
        else:
            parts += [part for _, part in each]
    return ", ".join(parts)


def _expression(schema: Any, value: str, names: dict[str, Any]) -> str:
    """Python that encodes the variable (or attribute) `value`."""
    match schema:
        case "long":
            return f"(_last[{value} << 1] if 0 <= {value} < 8192 else _longs.get({value}) or _long({value}))"
        case "string":
            return f"(_strings.get({value}) or _string({value}))"
        case "bytes":
            return f"(_size({value}) + {value})"
        case "boolean":
            return f"_boolean({value})"
        case ["null", inner]:
            return f'(b"\\0" if {value} is None else b"\\2" + {_expression(inner, value, names)})'
        case {"type": "array", "items": inner}:
            item = _expression(inner, "x", names)
            return f'(_size({value}) + _join([{item} for x in {value}]) + b"\\0" if {value} else b"\\0")'
        case {"type": "map", "values": inner}:
            item = _expression(inner, "x", names)
            pairs = f"_join([_string(k) + {item} for k, x in {value}.items()])"
            return f'(_size({value}) + {pairs} + b"\\0" if {value} else b"\\0")'
        case {"type": "record", "name": name}:
            return f"_record_{name.rpartition('.')[2]}({value})"
        case str():
            return f"_record_{schema.rpartition('.')[2]}({value})"
        case _:
            raise TypeError(f"schemas use no {schema!r}")

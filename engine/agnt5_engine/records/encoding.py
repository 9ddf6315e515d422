"""Avro bodies written by functions made for one schema each.

fastavro writes from dicts and interprets the schema per value; a NamedTuple has to become a dict first. A step costs
at least one record, so this is on the hot path: a function compiled per schema takes a quarter of the time
(`benchmarks/records.py` prints both). It covers what `schemas/` uses: records, arrays and maps of them, string,
bytes, long, boolean, and unions with null. Tests hold it to fastavro's bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _varint(n: int) -> bytes:
    """A long: zig-zag, then 7 bits at a time, lowest first (Avro specification, "Binary encoding")."""
    n = (n << 1) ^ (n >> 63)
    if n >> 42 == 0 and n >> 28:  # 32-bit digests and times in milliseconds, written out
        low = (n & 0x7F | 0x80, n >> 7 & 0x7F | 0x80, n >> 14 & 0x7F | 0x80, n >> 21 & 0x7F | 0x80)
        return bytes((*low, n >> 28)) if n >> 35 == 0 else bytes((*low, n >> 28 & 0x7F | 0x80, n >> 35))
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


_SMALL = [_varint(n) for n in range(4096)]


def _long(n: int) -> bytes:
    return _SMALL[n] if 0 <= n < 4096 else _varint(n)


def _string(s: str) -> bytes:
    data = s.encode()
    return _long(len(data)) + data


def _bytes(data: bytes) -> bytes:
    return _long(len(data)) + data


def _boolean(value: bool) -> bytes:
    return b"\1" if value else b"\0"


def compiled(schema: Any, header: bytes) -> Callable[[Any], bytes]:
    """A function from a NamedTuple with the schema's fields, in their order, to `header` and the Avro body."""
    names: dict[str, Any] = {
        "_long": _long,
        "_string": _string,
        "_bytes": _bytes,
        "_boolean": _boolean,
        "_join": b"".join,
        "_header": header,
    }
    _define(schema, names)
    fields = ", ".join(f["name"] for f in schema["fields"])
    parts = ", ".join(_expression(f["type"], f["name"], names) for f in schema["fields"])
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
                parts = ", ".join(_expression(f["type"], f["name"], names) for f in fields)
                source = f"def _record_{name}(record):\n    {given}, = record\n    return _join(({parts},))\n"
                exec(compile(source, f"<Avro {name}>", "exec"), names)
        case {"type": "array", "items": inner} | {"type": "map", "values": inner}:
            _define(inner, names)
        case list():
            for branch in schema:
                _define(branch, names)
        case _:
            pass


def _expression(schema: Any, value: str, names: dict[str, Any]) -> str:
    """Python that encodes the variable (or attribute) `value`."""
    match schema:
        case "string" | "bytes" | "long" | "boolean":
            return f"_{schema}({value})"
        case ["null", inner]:
            return f'(b"\\0" if {value} is None else b"\\2" + {_expression(inner, value, names)})'
        case {"type": "array", "items": inner}:
            item = _expression(inner, "x", names)
            return f'(_long(len({value})) + _join([{item} for x in {value}]) + b"\\0" if {value} else b"\\0")'
        case {"type": "map", "values": inner}:
            item = _expression(inner, "x", names)
            pairs = f"_join([_string(k) + {item} for k, x in {value}.items()])"
            return f'(_long(len({value})) + {pairs} + b"\\0" if {value} else b"\\0")'
        case {"type": "record", "name": name}:
            return f"_record_{name.rpartition('.')[2]}({value})"
        case str():
            return f"_record_{schema.rpartition('.')[2]}({value})"
        case _:
            raise TypeError(f"schemas use no {schema!r}")

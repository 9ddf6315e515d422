"""The compiled encoders write what fastavro writes."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agnt5_engine.records import avro


def values(schema: Any, seen: dict[str, Any]) -> st.SearchStrategy[Any]:
    match schema:
        case "string":
            return st.text(max_size=20)
        case "bytes":
            return st.binary(max_size=5000)
        case "long":
            return st.integers(-(2**63), 2**63 - 1)
        case "boolean":
            return st.booleans()
        case [*branches]:
            return st.one_of([st.none() if b == "null" else values(b, seen) for b in branches])
        case {"type": "array", "items": items}:
            return st.lists(values(items, seen), max_size=3)
        case {"type": "map", "values": inner}:
            return st.dictionaries(st.text(max_size=5), values(inner, seen), max_size=3)
        case {"type": "record", "name": name, "fields": fields}:
            seen[name] = st.fixed_dictionaries({f["name"]: values(f["type"], seen) for f in fields})
            return seen[name]
        case _:
            return seen[schema]


@pytest.mark.parametrize("kind", sorted(avro.schema_files()))
@given(data=st.data())
def test_compiled_encoders_write_the_bytes_that_fastavro_writes(kind: str, data: st.DataObject) -> None:
    versions = avro.schema_files()[kind]
    schema = versions[max(versions)]
    value = data.draw(values(schema, {}))
    expected = BytesIO()
    fastavro.schemaless_writer(expected, fastavro.parse_schema(schema), value)
    written = avro.header_of(schema) + expected.getvalue()
    assert avro.encode(avro.decode(written)) == written

"""Encoding and decoding one step's record: the compiled encoder beside fastavro's own.

python benchmarks/records.py
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import fastavro

from agnt5_engine.records import avro
from agnt5_engine.records.journal import StepSucceeded

COUNT = 200_000


def microseconds(work: Callable[[Any], Any], value: Any) -> float:
    began = time.perf_counter()
    for _ in range(COUNT):
        work(value)
    return round((time.perf_counter() - began) / COUNT * 1e6, 2)


def main() -> None:
    record = StepSucceeded("abcdefghijklmnopqrstuvwxyz", "12", 0, b'{"order_id":"o-1","status":"paid"}', 12345)
    schema = fastavro.parse_schema(avro.schema_files()["StepSucceeded"][1])

    def by_fastavro(r: StepSucceeded) -> bytes:
        out = BytesIO()
        fastavro.schemaless_writer(out, schema, r._asdict())
        return out.getvalue()

    ours, theirs = microseconds(avro.encode, record), microseconds(by_fastavro, record)
    decoding = microseconds(avro.decode, avro.encode(record))
    print(json.dumps({"encode_us": ours, "fastavro_encode_us": theirs, "decode_us": decoding, "ratio": ours / theirs}))


if __name__ == "__main__":
    main()

"""The log in a directory: topics, offsets and group positions in one RocksDB, for one process and no broker."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Transport":  # the entry point's name; imported late, because Faust takes half a second
        from agnt5_engine.transport.embedded.consumer import Transport

        return Transport
    raise AttributeError(name)

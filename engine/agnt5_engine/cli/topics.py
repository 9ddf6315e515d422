"""`agnt5 topics`: what the engine needs of the broker, and making it so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agnt5_engine.cli import terminal
from agnt5_engine.cli.exits import FAILED, USAGE
from agnt5_engine.cli.processor import Broker
from agnt5_engine.cli.terminal import command, fail, print_json, print_table, say

if TYPE_CHECKING:
    from agnt5_engine.settings import Settings
    from agnt5_engine.transport.base import TopicInfo, TopicSpec

app = typer.Typer(name="topics", no_args_is_help=True, help="The engine's topics: what is missing or differs.")

Queues = Annotated[list[str] | None, typer.Option("--queue", help="Also the topic of this queue's steps; repeatable.")]


@app.command(epilog="Example:  agnt5 topics plan --broker kafka://localhost:9092")
@command
def plan(broker: Broker = None, queue: Queues = None, json: terminal.Json = False) -> None:
    """Show which topics are missing or differ; changes nothing. Exits with 1 when something is to be done."""
    settings = _settings(broker)
    rows = _plan(settings, queue or [])
    _show(rows, json)
    if any(row["state"] != "as wanted" for row in rows):
        raise typer.Exit(FAILED)


@app.command(epilog="Example:  agnt5 topics apply --broker kafka://localhost:9092 --queue gpu")
@command
def apply(broker: Broker = None, queue: Queues = None, json: terminal.Json = False) -> None:
    """Create the topics that are missing. One that differs is named with the remedy, and not touched."""
    import asyncio

    settings = _settings(broker)
    rows = asyncio.run(_applied(settings, queue or []))
    _show(rows, json)
    if any(row["state"] not in ("as wanted", "created") for row in rows):
        raise typer.Exit(FAILED)


def _settings(broker: str | None) -> Settings:
    from agnt5_engine.settings import load_settings

    settings = load_settings(broker=broker)
    if settings.is_embedded:
        fail("the embedded engine makes its own topics; for Kafka: --broker kafka://HOST:PORT", USAGE)
    return settings


def _plan(settings: Settings, queues: list[str]) -> list[dict[str, Any]]:
    import asyncio

    return asyncio.run(_planned(settings, queues))


async def _planned(settings: Settings, queues: list[str]) -> list[dict[str, Any]]:
    from agnt5_engine.transport import open_log

    log = open_log(settings.broker, settings)
    try:
        wanted = _wanted(settings, queues)
        found = await log.topics([spec.name for spec in wanted])
        return [_row(spec, found.get(spec.name)) for spec in wanted]
    finally:
        await log.close()


async def _applied(settings: Settings, queues: list[str]) -> list[dict[str, Any]]:
    from agnt5_engine.transport import open_log

    log = open_log(settings.broker, settings)
    try:
        wanted = _wanted(settings, queues)
        found = await log.topics([spec.name for spec in wanted])
        missing = [spec for spec in wanted if spec.name not in found]
        if missing:
            await log.create(missing, settings.replication)
        found = await log.topics([spec.name for spec in wanted])
        created = {spec.name for spec in missing}
        rows = [_row(spec, found.get(spec.name)) for spec in wanted]
        for row in rows:
            if row["topic"] in created and row["state"] == "as wanted":
                row["state"] = "created"
        return rows
    finally:
        await log.close()


def _wanted(settings: Settings, queues: list[str]) -> list[TopicSpec]:
    from agnt5_engine import topics
    from agnt5_engine.queues.topics import steps_spec

    try:
        return [*topics.specs(settings), *(steps_spec(settings, queue) for queue in queues)]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _row(spec: TopicSpec, info: TopicInfo | None) -> dict[str, Any]:
    from agnt5_engine.topics import contradictions

    faults = [] if info is None else contradictions(spec, info)
    return {
        "topic": spec.name,
        "state": "missing" if info is None else "differs" if faults else "as wanted",
        "partitions": spec.partitions,
        "config": {
            "cleanup.policy": spec.cleanup,
            "retention.ms": -1 if spec.retention_ms is None else spec.retention_ms,
            "max.message.bytes": spec.max_message_bytes,
            "message.timestamp.type": "LogAppendTime",
        },
        "faults": faults,
    }


def _show(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json({"items": rows, "next_cursor": None})
        return
    print_table(
        ("topic", "state", "partitions", "settings"),
        [
            (row["topic"], row["state"], row["partitions"], " ".join(f"{k}={v}" for k, v in row["config"].items()))
            for row in rows
        ],
    )
    for row in rows:
        for fault in row["faults"]:
            say(f"  {fault}")

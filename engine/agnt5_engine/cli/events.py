"""`agnt5 events`: publish to topics."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated

import typer

from agnt5_engine.cli import reach, terminal
from agnt5_engine.cli.terminal import command, print_shape, warn

if TYPE_CHECKING:
    from agnt5.client import Client

app = typer.Typer(name="events", no_args_is_help=True, help="Publish events to topics.")


@app.callback()
def _noun() -> None:
    """Keeps `publish` a word of its own."""


@app.command(
    epilog='Examples:  agnt5 events publish user.signed_up \'{"name": "Ada"}\' --key ada  ·  '
    "agnt5 events publish orders @order.json --id order-1"
)
@command
def publish(
    topic: Annotated[str, typer.Argument(help="The topic.")],
    payload: Annotated[str, typer.Argument(help="The event: JSON, @file, or - (stdin).", metavar="JSON")],
    key: Annotated[str | None, typer.Option(help="The record's key.")] = None,
    id: Annotated[str | None, typer.Option("--id", help="The event's ID: triggers start one run for it.")] = None,
    url: reach.Url = None,
    api_key: reach.Key = None,
    json: terminal.Json = False,
) -> None:
    """Publish an event; returns once it is durable."""
    from agnt5_engine.cli.values import json_of

    value = json_of(payload, "the event")
    with reach.client(url, api_key) as client:
        landed = client.publish(topic, value, key, event_id=id)
        warn_if_unheard(client, topic)
    if json:
        print_shape(landed)
    else:
        typer.echo(f"{landed.topic} partition {landed.partition} offset {landed.offset}")


def warn_if_unheard(client: Client, topic: str) -> None:
    """Warn when no workflow is triggered by the topic, with near names."""
    heard = {
        str(trigger["topic"])
        for flow in client.workflows().items
        for trigger in flow.triggers
        if trigger.get("kind") == "event" and "topic" in trigger
    }
    if topic in heard:
        return
    near = difflib.get_close_matches(topic, sorted(heard), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    if not near and heard:
        hint = f"; there is {', '.join(sorted(heard)[:10])}"
    warn(f"no workflow here is triggered by the topic {topic}{hint}")

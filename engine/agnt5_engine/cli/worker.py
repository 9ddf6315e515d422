"""`agnt5 worker`: a worker for the steps of one queue."""

from __future__ import annotations

from typing import Annotated

import typer

from agnt5_engine.cli.processor import Broker, Json, Modules, as_json
from agnt5_engine.cli.terminal import command


def add_to(app: typer.Typer) -> None:
    app.command("worker", epilog="Example:  agnt5 worker app.py --queue gpu --broker kafka://localhost:9092")(worker)


@command
def worker(
    modules: Modules,
    queue: Annotated[str, typer.Option(help="The queue, as in @function(queue=...).")],
    broker: Broker = None,
    processes: Annotated[int, typer.Option(min=1, max=256, help="How many processes on this machine.")] = 1,
    json: Json = False,
) -> None:
    """Run the steps of functions that name this queue; a child that dies is started again."""
    from agnt5_engine.settings import load_settings

    settings = load_settings(broker=broker)
    try:
        settings.steps_topic(queue)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    from agnt5_engine.cli import child
    from agnt5_engine.cli.supervisor import supervise

    environment = {child.QUEUE: queue} | as_json(json) | ({} if broker is None else {"AGNT5_BROKER": broker})
    raise typer.Exit(supervise(child.command("worker", modules), [environment] * processes))

"""`agnt5 processor`: one or several processors, kept alive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from agnt5_engine.cli.exits import USAGE
from agnt5_engine.cli.terminal import command, fail, say, warn

if TYPE_CHECKING:
    from agnt5_engine.settings import Settings

Modules = Annotated[list[str], typer.Argument(metavar="MODULE...", help="pkg.mod, or a path to a file.")]
Json = Annotated[bool, typer.Option("--json", help="Log as JSON lines, as AGNT5_LOG_FORMAT=json does.")]
Broker = Annotated[str | None, typer.Option(help="kafka://HOST:PORT or embedded://DIR. Else AGNT5_BROKER.")]


def add_to(app: typer.Typer) -> None:
    app.command(
        "processor",
        epilog="Examples:  agnt5 processor app.py  ·  "
        "agnt5 processor shop.flows shop.reports --broker kafka://localhost:9092 --processes 4",
    )(processor)


@command
def processor(
    modules: Modules,
    broker: Broker = None,
    processes: Annotated[int, typer.Option(min=1, max=256, help="How many processes on this machine.")] = 1,
    leave: Annotated[
        bool, typer.Option("--leave", help="When stopped, leave the group at once (scaling down for good).")
    ] = False,
    json: Json = False,
) -> None:
    """Run the workflows of these modules: join the group, serve the API; a child that dies is started again.

    With several processes, the first listens on AGNT5_HTTP and each further one on the next port; so it is with the
    port of AGNT5_ADVERTISED_URL."""
    from agnt5_engine.settings import load_settings

    settings = load_settings(broker=broker)
    if processes > 1 and settings.is_embedded:
        fail("the embedded engine is one process; for several use Kafka: --broker kafka://HOST:PORT", USAGE)
    from agnt5_engine.cli import child
    from agnt5_engine.cli.supervisor import supervise

    places = [
        _environment(settings, broker, number) | as_json(json) | ({child.LEAVE: "1"} if leave else {})
        for number in range(processes)
    ]

    async def vacate(place: str) -> None:
        await _drop(settings, place)

    raise typer.Exit(supervise(child.command("processor", modules), places, vacate))


def as_json(json: bool) -> dict[str, str]:
    """What `--json` means to a child: it prints nothing but its log."""
    return {"AGNT5_LOG_FORMAT": "json"} if json else {}


def _further(url: str, number: int) -> str:
    """The address of a further process: of one address for all, no processor could reach another. Exits with 2 when
    it has no port to count up."""
    parts = urlsplit(url)
    if parts.port is None or parts.port + number > 65535:
        fail(f"AGNT5_ADVERTISED_URL={url}: with several processes it names the first one's port, as in :8080", USAGE)
    host = parts.netloc.rpartition(":")[0]
    return parts._replace(netloc=f"{host}:{parts.port + number}").geturl()


async def _drop(settings: Settings, place: str) -> None:
    """Have the group give the partitions of a processor that will not come back to the others, at once."""
    if settings.is_embedded:
        return
    from agnt5_engine.transport.base import TransportError
    from agnt5_engine.transport.kafka import open_log

    log = open_log(settings)
    try:
        for instance_id in await log.drop_place(settings.group, settings.journal_topic, place):
            say(f"{instance_id} has left the group; its partitions go to the other processors")
    except TransportError as error:
        after = f"{settings.session_timeout:g} s (AGNT5_SESSION_TIMEOUT)"
        warn(f"its partitions go to other processors only after {after}: the group could not be told: {error}")
    finally:
        await log.close()


def _environment(settings: Settings, broker: str | None, number: int) -> dict[str, str]:
    """What a child's settings differ in from ours."""
    environment = {} if broker is None else {"AGNT5_BROKER": broker}
    if number and (settings.http_is_explicit or settings.advertised_url) and settings.http_port:
        host, _, port = settings.http.rpartition(":")
        environment["AGNT5_HTTP"] = f"{host}:{int(port) + number}"
    if number and settings.advertised_url:
        environment["AGNT5_ADVERTISED_URL"] = _further(settings.advertised_url, number)
    if number and settings.instance_id:
        environment["AGNT5_INSTANCE_ID"] = f"{settings.instance_id}-{number}"
    return environment

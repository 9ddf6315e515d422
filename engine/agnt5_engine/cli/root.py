"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from agnt5_engine.cli import (
    approvals,
    dead_letters,
    dev,
    doctor,
    events,
    init,
    processor,
    replay,
    run,
    runs,
    topics,
    worker,
)

app = typer.Typer(
    name="agnt5",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Durable workflows on Kafka, or on nothing but a directory.\n\n"
    "Exit codes: 0 done, 1 failed, 2 usage or settings, 3 not found, 4 cannot reach.",
)

for _command in (init, dev, processor, worker, run, replay, doctor):
    _command.add_to(app)
for _noun in (runs, approvals, events, dead_letters, topics):
    app.add_typer(_noun.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("agnt5-kafka"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """What all commands have in common."""

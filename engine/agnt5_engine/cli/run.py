"""`agnt5 run`: start a workflow and see what comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agnt5_engine.cli import reach, terminal
from agnt5_engine.cli.terminal import command, print_json, print_shape, say

if TYPE_CHECKING:
    from agnt5.client import Client
    from agnt5.client.models import Event, Run

FOLLOW_PATIENCE = 60.0


def add_to(app: typer.Typer) -> None:
    app.command("run", epilog=_EXAMPLES)(run)


_EXAMPLES = (
    "Examples:  agnt5 run order_workflow order_id=A-1 amount=89.99 --follow  ·  agnt5 run report --input @report.json  "
    "·  echo '{\"n\": 1}' | agnt5 run count --input - --json"
)


@command
def run(
    workflow: Annotated[str, typer.Argument(help="The workflow's name.")],
    inputs: Annotated[list[str] | None, typer.Argument(metavar="key=value...", help="Its inputs.")] = None,
    input: Annotated[
        str | None, typer.Option("--input", help="All inputs as a JSON object, @file, or - (stdin).")
    ] = None,
    session: Annotated[str | None, typer.Option(help="The session the run belongs to.")] = None,
    user: Annotated[str | None, typer.Option(help="The user the run works for.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Idempotency key: the same key is the same run.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show every event as it happens.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result, or print the run's ID.")] = True,
    url: reach.Url = None,
    api_key: reach.Key = None,
    json: terminal.Json = False,
) -> None:
    """Start a run, wait for it and print its output."""
    from agnt5.client import calls
    from agnt5.client.models import Submitted

    with reach.client(url, api_key, FOLLOW_PATIENCE) as client:
        value = _input_of(client, workflow, inputs or [], input)
        start = calls.start_call("submit", workflow, value, session, user, key)
        answered = client._drive(calls.ask(start, FOLLOW_PATIENCE))  # `client.submit` keeps `existing` to itself
        submitted = Submitted.model_validate_json(answered.reply.body)
        run_id = submitted.run_id
        if not wait:
            if json:
                print_shape(submitted)
            else:
                typer.echo(run_id)
            return
        say(f"run {run_id}")
        try:
            watch(client, run_id, everything=follow)
        except KeyboardInterrupt:
            say(f"The run goes on. See: agnt5 runs show {run_id}")
            raise
        ended = client.get_run(run_id)
    if json:
        print_shape(ended)
    elif ended.status == "completed":
        print_json(ended.output)
    report(ended)


def watch(client: Client, run_id: str, *, everything: bool) -> None:
    """Tell what happens until the run has ended or is parked; of everything, or only what a person must act on."""
    for event in client.stream(run_id):
        if everything:
            say(line_of(event))
        elif event.type == "approval.requested":
            say(f"It waits for an answer: agnt5 approvals answer {run_id} ANSWER")
        if event.type == "run.paused" and client.get_run(run_id).status == "paused":
            return  # one that is told of may be over: a run that an idempotency key found has a past


def report(run: Run) -> None:
    """Say why a run did not complete, and exit with 1."""
    if run.status == "completed":
        return
    if run.error is not None:
        where = f" in step {run.error.step}" if run.error.step else ""
        terminal.fail(f"the run {run.status}{where}: {run.error.type}: {run.error.message}")
    if run.pause is not None:
        terminal.fail(
            f"the run is parked ({run.pause.reason}): {run.pause.detail}\n"
            f"  It goes on when fitting code runs, or by: agnt5 runs retry {run.run_id}"
        )
    terminal.fail(f"the run is {run.status}")


def line_of(event: Event) -> str:
    """An event in one line, with whatever characters it has."""
    import json

    told = {name: value for name, value in event.data.items() if value is not None}
    parts = [f"{event.time.astimezone():%H:%M:%S.%f}"[:-3], event.type]
    if event.name:
        parts.append(event.name)
    if event.attempt and event.attempt > 1:
        parts.append(f"(attempt {event.attempt})")
    if told:
        text = json.dumps(told, ensure_ascii=False, default=str)
        parts.append(text if len(text) <= 160 else text[:157] + "...")
    return "  ".join(parts)


def _input_of(client: Client, workflow: str, pairs: list[str], given: str | None) -> dict[str, Any]:
    from agnt5_engine.cli.values import object_of, pairs_of

    value = {} if given is None else object_of(given, "--input")
    if pairs:
        schemas = {flow.name: flow.input_schema for flow in client.workflows().items}
        value |= pairs_of(pairs, schemas.get(workflow))
    return value

"""`agnt5 runs`: look at runs, and act on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agnt5_engine.cli import reach, terminal
from agnt5_engine.cli.terminal import command, print_fields, print_shape, print_table, say, when
from agnt5_engine.printable import printable

if TYPE_CHECKING:
    from agnt5.client.models import Run, Status

app = typer.Typer(name="runs", no_args_is_help=True, help="Look at runs, and act on them.")

RunId = Annotated[str, typer.Argument(help="The run's ID.", metavar="RUN_ID")]


@app.command("list", epilog="Example:  agnt5 runs list --status failed --workflow order_workflow")
@command
def list_(
    status: Annotated[str | None, typer.Option(help="Only runs with this status.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Only runs of this workflow.")] = None,
    session: Annotated[str | None, typer.Option(help="Only runs of this session.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Where the last list ended (its next_cursor).")] = None,
    url: reach.Url = None,
    api_key: reach.Key = None,
    json: terminal.Json = False,
) -> None:
    """List runs, newest first."""
    with reach.client(url, api_key) as client:
        page = client.list_runs(status=status, workflow=workflow, session_id=session, limit=limit, cursor=cursor)
    if json:
        print_shape(page)
        return
    if not page.items:
        say("There are no such runs.")
        return
    rows = [(run.run_id, run.workflow, run.status, when(run.created_at), _note(run)) for run in page.items]
    print_table(("run", "workflow", "status", "created", ""), rows)
    if page.next_cursor:
        say(f"There are more: --cursor {page.next_cursor}")


@app.command(epilog="Example:  agnt5 runs show 3jq5h2kq --json")
@command
def show(run_id: RunId, url: reach.Url = None, api_key: reach.Key = None, json: terminal.Json = False) -> None:
    """Show one run."""
    with reach.client(url, api_key) as client:
        run = client.get_run(run_id)
    if json:
        print_shape(run)
        return
    error = run.error
    print_fields(
        [
            ("run", run.run_id),
            ("workflow", run.workflow),
            ("status", run.status),
            ("input", run.input),
            ("output", run.output),
            ("error", f"{error.type}: {error.message}" if error else None),
            ("failed in", error.step if error else None),
            ("parked", f"{run.pause.reason}: {run.pause.detail}" if run.pause else None),
            *(("waits for", _waiting(run, number)) for number in range(len(run.waiting_on))),
            ("session", run.session_id if run.session_id != run.run_id else None),
            ("user", run.user_id if run.user_id not in (run.run_id, run.session_id) else None),
            ("started by", run.trigger.model_dump(mode="json")),
            ("parent", run.parent_run_id),
            ("created", when(run.created_at)),
            ("finished", when(run.finished_at)),
            ("traceback", error.traceback if error else None),
        ]
    )


@app.command(epilog="Example:  agnt5 runs events 3jq5h2kq --follow")
@command
def events(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    url: reach.Url = None,
    api_key: reach.Key = None,
    json: terminal.Json = False,
) -> None:
    """Show what happened in a run; with --json and --follow, one event a line."""
    from agnt5_engine.cli.run import FOLLOW_PATIENCE, line_of

    with reach.client(url, api_key, FOLLOW_PATIENCE if follow else reach.PATIENCE) as client:
        if json and not follow:
            from agnt5.client.models import EventList

            print_shape(EventList(items=client.history(run_id)))
            return
        for event in client.stream(run_id) if follow else client.history(run_id):
            typer.echo(event.model_dump_json() if json else printable(line_of(event)))


@app.command(epilog="Example:  agnt5 runs cancel 3jq5h2kq --force")
@command
def cancel(
    run_id: RunId,
    force: Annotated[bool, typer.Option(help="End a run that does not react.")] = False,
    url: reach.Url = None,
    api_key: reach.Key = None,
    json: terminal.Json = False,
) -> None:
    """Ask a run to stop."""
    with reach.client(url, api_key) as client:
        _told(client.cancel(run_id, force=force), json)


@app.command(epilog="Example:  agnt5 runs retry 3jq5h2kq")
@command
def retry(run_id: RunId, url: reach.Url = None, api_key: reach.Key = None, json: terminal.Json = False) -> None:
    """Let a parked or failed run go on from what failed."""
    with reach.client(url, api_key) as client:
        _told(client.retry(run_id), json)


@app.command(epilog="Example:  agnt5 runs signal 3jq5h2kq payment_received '{\"amount\": 12}'")
@command
def signal(
    run_id: RunId,
    name: Annotated[str, typer.Argument(help="The signal's name.")],
    payload: Annotated[str, typer.Argument(help="JSON, @file, or - (stdin).")] = "null",
    id: Annotated[str | None, typer.Option("--id", help="Two signals with one ID count once.")] = None,
    url: reach.Url = None,
    api_key: reach.Key = None,
    json: terminal.Json = False,
) -> None:
    """Give a run a signal."""
    from agnt5_engine.cli.values import json_of

    value = json_of(payload, "the payload")
    with reach.client(url, api_key) as client:
        _told(client.signal(run_id, name, value, id=id), json)


def _told(status: Status, json: bool) -> None:
    if json:
        print_shape(status)
    else:
        say(f"run {status.run_id} is {status.status}")


def _note(run: Run) -> str:
    if run.error is not None:
        return f"{run.error.type}: {run.error.message}".splitlines()[0]
    if run.pause is not None:
        return run.pause.reason
    return _waiting(run, 0) if run.waiting_on else ""


def _waiting(run: Run, number: int) -> str:
    wait = run.waiting_on[number]
    until = f" until {when(wait.until)}" if wait.until else ""
    return f"{wait.kind} {wait.name}{until}".strip()

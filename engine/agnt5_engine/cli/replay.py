"""`agnt5 replay`: does today's code still go the way of the runs that are under way?"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agnt5_engine.cli import reach, terminal
from agnt5_engine.cli.exits import FAILED
from agnt5_engine.cli.terminal import command, print_json, print_table, say

if TYPE_CHECKING:
    from agnt5.client import Client

LIVE = ("pending", "running", "awaiting_user_input", "paused")


def add_to(app: typer.Typer) -> None:
    app.command(
        "replay", epilog="Examples:  agnt5 replay app.py --all  ·  agnt5 replay shop.flows 3jq5h2kq  (before a deploy)"
    )(replay)


@command
def replay(
    module: Annotated[str, typer.Argument(help="pkg.mod, or a path to a file: the code to try.", metavar="MODULE")],
    run_id: Annotated[str | None, typer.Argument(help="One run.", metavar="[RUN_ID]")] = None,
    all: Annotated[bool, typer.Option("--all", help="Every run that has not ended.")] = False,
    url: reach.Url = None,
    api_key: reach.Key = None,
    json: terminal.Json = False,
) -> None:
    """Replay the histories of live runs on this code, without running any step. Exits with 1 when one does not fit."""
    if all == (run_id is not None):
        raise typer.BadParameter("give a RUN_ID, or --all")
    from agnt5 import registry

    with redirect_stdout(sys.stderr):  # the code that is tried may print, and stdout is for what it showed
        registry.load(module)
        with reach.client(url, api_key) as client:
            ids = [run_id] if run_id is not None else _live(client)
            shown = _with_progress(client, ids, quiet=json)
    if json:
        print_json({"items": shown, "next_cursor": None})
    elif shown:
        print_table(
            ("run", "workflow", "replays", "events", ""),
            [
                (one["run_id"], one["workflow"], one["verdict"], one["events"], _first_line(one["detail"]))
                for one in shown
            ],
        )
        if len(shown) == 1 and shown[0]["detail"]:
            say(str(shown[0]["detail"]))
    else:
        say("No run is under way.")
    if any(one["verdict"] == "no" for one in shown):
        say("What does not fit would be parked after a deploy: keep the old way with ctx.patched(...), or let it end.")
        raise typer.Exit(FAILED)


def _live(client: Client) -> list[str]:
    found: dict[str, None] = {}
    for status in LIVE:
        cursor: str | None = None
        while True:
            page = client.list_runs(status=status, limit=1000, cursor=cursor)
            found.update((run.run_id, None) for run in page.items)
            cursor = page.next_cursor
            if cursor is None:
                break
    return list(found)


def _with_progress(client: Client, ids: list[str], *, quiet: bool) -> list[dict[str, Any]]:
    from rich.progress import track

    console = terminal.stderr()
    hidden = quiet or len(ids) < 20 or not console.is_terminal
    tried = track(ids, "Replaying", console=console, disable=hidden, transient=True)
    return [one for run_id in tried if (one := _verdict(client, run_id, only=len(ids) == 1)) is not None]


def _verdict(client: Client, run_id: str, *, only: bool) -> dict[str, Any] | None:
    """What replaying one run showed; None for one that is gone meanwhile."""
    from agnt5 import registry
    from agnt5.client import NotFoundError
    from agnt5.errors import Agnt5Error
    from agnt5.replay.history import verify

    try:
        history = client.replay_history(run_id)
    except NotFoundError:
        if only:
            raise
        return None
    told: dict[str, Any] = {"run_id": run_id, "workflow": history.info.workflow, "events": len(history.events)}
    workflow = registry.find_workflow(history.info.workflow)
    if workflow is None:
        return told | {"verdict": "not here", "verified": 0, "detail": "this module does not define the workflow"}
    try:
        verified = verify(workflow, history)
    except Agnt5Error as error:
        return told | {"verdict": "no", "verified": 0, "detail": str(error)}
    if verified.stopped_at is not None:
        detail = f"{verified.stopped_at} is called in place; what follows cannot be verified without running it"
        return told | {"verdict": "in part", "verified": verified.verified, "detail": detail}
    return told | {"verdict": "yes", "verified": verified.verified, "detail": ""}


def _first_line(text: object) -> str:
    return str(text).splitlines()[0] if text else ""

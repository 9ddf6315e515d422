"""`agnt5 approvals`: open questions, and answers to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agnt5_engine.cli import reach, terminal
from agnt5_engine.cli.terminal import command, print_shape, print_table, say, when

if TYPE_CHECKING:
    from agnt5.client import Client
    from agnt5.client.models import Approval

app = typer.Typer(name="approvals", no_args_is_help=True, help="Open questions, and answers to them.")


@app.command("list", epilog="Example:  agnt5 approvals list --json")
@command
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    cursor: Annotated[str | None, typer.Option(help="Where the last list ended (its next_cursor).")] = None,
    url: reach.Url = None,
    api_key: reach.Key = None,
    json: terminal.Json = False,
) -> None:
    """List open questions, oldest first."""
    with reach.client(url, api_key) as client:
        page = client.approvals(limit, cursor)
    if json:
        print_shape(page)
        return
    if not page.items:
        say("Nobody waits for an answer.")
        return
    rows = [
        (one.run_id, one.workflow, one.entry, " ".join(one.question.split()), _choices(one), when(one.asked_at))
        for one in page.items
    ]
    print_table(("run", "workflow", "entry", "question", "answers", "asked"), rows)
    if page.next_cursor:
        say(f"There are more: --cursor {page.next_cursor}")


@app.command(
    epilog="Examples:  agnt5 approvals answer 3jq5h2kq approve --user ada  ·  agnt5 approvals answer 3jq5h2kq a,b  "
    "·  agnt5 approvals answer 3jq5h2kq --skip"
)
@command
def answer(
    run_id: Annotated[str, typer.Argument(help="The run's ID.", metavar="RUN_ID")],
    response: Annotated[
        str | None, typer.Argument(metavar="ANSWER", help="Text, an option's ID, or several by comma.")
    ] = None,
    skip: Annotated[bool, typer.Option("--skip", help="Skip the question.")] = False,
    entry: Annotated[str | None, typer.Option(help="Which question, where several are open.")] = None,
    user: Annotated[str | None, typer.Option(help="Who answers; the history keeps it.")] = None,
    url: reach.Url = None,
    api_key: reach.Key = None,
    json: terminal.Json = False,
) -> None:
    """Answer a run's open question."""
    if skip == (response is not None):
        raise typer.BadParameter("give an ANSWER, or --skip")
    with reach.client(url, api_key) as client:
        value = None if skip else _value(client, run_id, entry, str(response))
        status = client.answer(run_id, value, entry=entry, user_id=user)
    if json:
        print_shape(status)
    else:
        say(f"run {status.run_id} is {status.status}")


def _value(client: Client, run_id: str, entry: str | None, response: str) -> Any:
    """The answer as the question wants it: a list for a multiselect, else the text."""
    cursor: str | None = None
    while True:
        page = client.approvals(1000, cursor)
        for one in page.items:
            if one.run_id == run_id and entry in (None, one.entry):
                if one.input_type == "multiselect":
                    return [part.strip() for part in response.split(",") if part.strip()]
                return response
        cursor = page.next_cursor
        if cursor is None:
            return response


def _choices(approval: Approval) -> str:
    choices = [option.id for option in approval.options]
    if approval.allow_custom or not choices:
        choices.append("(text)")
    if approval.skippable:
        choices.append("(skip)")
    return ", ".join(choices)

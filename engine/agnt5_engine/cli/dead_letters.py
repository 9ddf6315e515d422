"""`agnt5 dead-letters`: what could not be taken, and sending it in again."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from agnt5_engine.cli import reach, terminal
from agnt5_engine.cli.exits import FAILED
from agnt5_engine.cli.terminal import command, print_fields, print_json, print_shape, print_table, say, when

if TYPE_CHECKING:
    from agnt5.client import Client
    from agnt5.client.models import DeadLetter

app = typer.Typer(
    name="dead-letters",
    no_args_is_help=True,
    help="What could not be decoded, bound or applied.",
)

LetterId = Annotated[str, typer.Argument(help="The dead letter's ID.", metavar="ID")]


@app.command("list", epilog="Example:  agnt5 dead-letters list --limit 20")
@command
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    cursor: Annotated[str | None, typer.Option(help="Where the last list ended (its next_cursor).")] = None,
    url: reach.Url = None,
    api_key: reach.Key = None,
    json: terminal.Json = False,
) -> None:
    """List dead letters, oldest first."""
    with reach.client(url, api_key) as client:
        page = client.dead_letters(limit, cursor)
    if json:
        print_shape(page)
        return
    if not page.items:
        say("There are no dead letters.")
        return
    rows = [
        (one.id, one.reason, f"{one.topic}[{one.partition}]@{one.offset}", when(one.time), _first_line(one.detail))
        for one in page.items
    ]
    print_table(("id", "reason", "from", "time", ""), rows)
    if page.next_cursor:
        say(f"There are more: --cursor {page.next_cursor}")


@app.command(epilog="Example:  agnt5 dead-letters show 0-12")
@command
def show(letter_id: LetterId, url: reach.Url = None, api_key: reach.Key = None, json: terminal.Json = False) -> None:
    """Show one dead letter, decoded as far as possible."""
    with reach.client(url, api_key) as client:
        letter = client.dead_letter(letter_id)
    if json:
        print_shape(letter)
        return
    print_fields(
        [
            ("id", letter.id),
            ("reason", letter.reason),
            ("detail", letter.detail),
            ("from", f"{letter.topic} partition {letter.partition} offset {letter.offset}"),
            ("key", letter.key),
            ("time", when(letter.time)),
            ("value", jsonlib.dumps(letter.value, indent=2, ensure_ascii=False)),
        ]
    )


@app.command(
    epilog="Examples:  agnt5 dead-letters redrive 0-12  ·  agnt5 dead-letters redrive --topic orders --reason unbound"
)
@command
def redrive(
    letter_ids: Annotated[list[str] | None, typer.Argument(help="Their IDs.", metavar="ID...")] = None,
    all: Annotated[bool, typer.Option("--all", help="Every one.")] = False,
    topic: Annotated[str | None, typer.Option(help="Every one from this topic.")] = None,
    reason: Annotated[str | None, typer.Option(help="Every one with this reason.")] = None,
    url: reach.Url = None,
    api_key: reach.Key = None,
    json: terminal.Json = False,
) -> None:
    """Put originals through their way in again; says what became of each."""
    chosen = list(letter_ids or ())
    by_filter = all or topic is not None or reason is not None
    if bool(chosen) == by_filter:
        raise typer.BadParameter("give IDs, or --all, --topic or --reason")
    from agnt5.client import ApiError, NotFoundError

    if json and len(chosen) == 1:
        with reach.client(url, api_key) as client:
            print_json({"runs": client.redrive(chosen[0])})
        return
    failed = 0
    became: list[dict[str, object]] = []
    with reach.client(url, api_key) as client:
        if by_filter:
            # Read before anything is redriven: what comes back as a new letter is not taken again.
            chosen = [one.id for one in _every(client) if topic in (None, one.topic) and reason in (None, one.reason)]
        for letter_id in chosen:
            try:
                runs = client.redrive(letter_id)
            except NotFoundError:
                if len(chosen) == 1:
                    raise
                became.append({"id": letter_id, "error": "there is no such dead letter"})
                failed += 1
            except ApiError as error:
                became.append({"id": letter_id, "error": str(error)})
                failed += 1
            else:
                became.append({"id": letter_id, "runs": runs})
    if json:
        print_json({"items": became, "next_cursor": None})
    elif became:
        print_table(("id", "became"), [(one["id"], _became(one)) for one in became])
    else:
        say("There are no such dead letters.")
    if failed:
        raise typer.Exit(FAILED)


def _every(client: Client) -> Iterator[DeadLetter]:
    cursor: str | None = None
    while True:
        page = client.dead_letters(1000, cursor)
        yield from page.items
        cursor = page.next_cursor
        if cursor is None:
            return


def _became(one: dict[str, object]) -> str:
    if "error" in one:
        return f"not redriven: {one['error']}"
    runs = one["runs"]
    assert isinstance(runs, list)
    return ", ".join(runs) if runs else "sent in again"


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""

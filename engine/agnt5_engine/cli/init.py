"""`agnt5 init`: a small project that runs."""

from __future__ import annotations

from typing import Annotated

import typer

from agnt5_engine.cli.terminal import command, fail, print_json, say


def add_to(app: typer.Typer) -> None:
    app.command("init", epilog="Example:  agnt5 init hello && cd hello && agnt5 dev app.py")(init)


@command
def init(
    folder: Annotated[str, typer.Argument(help="Where to; it is made if it does not exist.", metavar="DIR")],
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a small project that runs: a workflow, its test, its settings. Nothing is overwritten."""
    from importlib.resources import files
    from pathlib import Path

    target = Path(folder)
    if target.exists() and not target.is_dir():
        fail(f"{folder} is a file, not a folder")
    template = files("agnt5_engine.cli").joinpath("template")
    sources = [source for source in template.iterdir() if source.is_file()]
    there = [source.name for source in sources if (target / source.name).exists()]
    if there:
        fail(f"{folder} has {', '.join(sorted(there))} already; nothing was written. Choose another folder")
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sorted(sources, key=lambda source: source.name):
        (target / source.name).write_bytes(source.read_bytes())
        written.append(source.name)
    if json:
        print_json({"folder": str(target), "files": written})
        return
    typer.echo("\n".join(str(target / name) for name in written))
    where = "" if target.resolve() == Path.cwd() else f"cd {folder} && "
    say(f"Now: {where}agnt5 dev app.py")

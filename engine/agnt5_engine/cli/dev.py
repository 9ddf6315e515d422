"""`agnt5 dev`: the embedded engine with API and page, started again whenever the code changes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agnt5_engine.cli.exits import USAGE
from agnt5_engine.cli.processor import Json, Modules, as_json
from agnt5_engine.cli.terminal import command, say, warn

if TYPE_CHECKING:
    from agnt5.client.models import Run
    from agnt5_engine.settings import Settings

STOP_SECONDS = 15.0
LOOK_SECONDS = 1.0


def add_to(app: typer.Typer) -> None:
    app.command("dev", epilog="Example:  agnt5 dev app.py")(dev)


@command
def dev(
    modules: Modules,
    reload: Annotated[bool, typer.Option("--reload/--no-reload", help="Start again when a file changes.")] = True,
    json: Json = False,
) -> None:
    """Run the workflows of these modules on the embedded engine, with the API and a page, and reload on change.

    Runs go on where they were. An edit that no longer fits a live run parks that run, and you are told what to do."""
    from agnt5_engine.settings import DEFAULT_DIR, load_settings

    settings = load_settings()
    environment = as_json(json)
    if not settings.is_embedded:
        environment["AGNT5_BROKER"] = f"embedded://{DEFAULT_DIR}"
        settings = load_settings(broker=environment["AGNT5_BROKER"])
        say("AGNT5_BROKER names a Kafka; dev uses the embedded engine all the same. For Kafka: agnt5 processor")
    raise typer.Exit(asyncio.run(_Session(settings, modules, environment, reload).run()))


class _Session:
    """One `agnt5 dev`: a child, a watch on the files, an eye on parked runs."""

    def __init__(self, settings: Settings, modules: list[str], environment: dict[str, str], reload: bool) -> None:
        self._settings = settings
        self._modules = modules
        self._environment = environment
        self._reload = reload
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        lifeline, own_end = os.pipe()
        tasks = [asyncio.create_task(self._watch())] if self._reload else []
        tasks.append(asyncio.create_task(self._look_after_runs()))
        code = 0
        try:
            while not self._stop.is_set():
                self._changed.clear()
                code = await self._live(lifeline)
                if self._stop.is_set() or self._changed.is_set():
                    continue
                if not self._reload:
                    return code
                say("Waiting for a change." if code else "The engine stopped. Waiting for a change.")
                await self._first(self._stop, self._changed)
            return 0
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            os.close(lifeline)
            os.close(own_end)

    async def _live(self, lifeline: int) -> int:
        """One life of the child: until it ends by itself, a file changes, or we are to stop. Its exit code."""
        process = self._process = self._start(lifeline)
        ended = asyncio.ensure_future(asyncio.to_thread(process.wait))
        watching = asyncio.ensure_future(self._first(self._stop, self._changed))
        await asyncio.wait((ended, watching), return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        if not ended.done():
            process.send_signal(signal.SIGTERM)
            done, _ = await asyncio.wait((ended,), timeout=STOP_SECONDS)
            if not done:
                warn(f"it did not stop within {STOP_SECONDS:.0f} s; killing it")
                process.kill()
        code = await ended
        if code not in (0, USAGE) and not self._stop.is_set():
            warn(f"the engine ended with exit code {code}")
        return code

    def _start(self, lifeline: int) -> subprocess.Popen[bytes]:
        from agnt5_engine.cli import child

        return subprocess.Popen(
            child.command("processor", self._modules),
            env={**os.environ, **self._environment, child.LIFELINE: str(lifeline)},
            pass_fds=(lifeline,),
        )

    async def _watch(self) -> None:
        from watchfiles import awatch

        watching = awatch(
            *self._folders(),
            watch_filter=self._is_code,
            stop_event=self._stop,
            ignore_permission_denied=True,  # a database's folder beside the code, say
        )
        try:
            async for changes in watching:
                names = sorted({Path(path).name for _, path in changes})
                say(f"Changed: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}. Reloading.")
                self._changed.set()
        except OSError as error:
            warn(f"the files cannot be watched any more, so start this again after an edit: {error}")

    def _folders(self) -> list[str]:
        folders = {Path.cwd()}
        folders.update(Path(module).resolve().parent for module in self._modules if module.endswith(".py"))
        # One inside another would be watched twice.
        return [str(one) for one in folders if not any(other in one.parents for other in folders)]

    def _is_code(self, change: object, path: str) -> bool:
        # What they lie in does not count: it may well be called `venv`.
        above = next((one for one in self._folders() if Path(path).is_relative_to(one)), "/")
        parts = Path(path).relative_to(above).parts
        if any(part in _IGNORED or part.endswith(".egg-info") for part in parts):
            return False
        return path.endswith(".py") or Path(path).name in (".env", "agnt5.toml")

    async def _look_after_runs(self) -> None:
        """Tell of each live run that the code no longer fits, and of each parked one, once per life of the child."""
        from agnt5.client import AsyncClient, NotAllowedError
        from agnt5_engine.gateway.addresses import noted

        told: set[str] = set()
        replayed = parked_in = 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            process, urls = self._process, noted(self._settings.data_dir)
            if process is None or process.poll() is not None or not urls:
                continue
            if process.pid != parked_in:
                told.clear()
                parked_in = process.pid
            refused: NotAllowedError | None = None
            try:
                async with AsyncClient(urls[0], self._key(), patience=0) as client:
                    parked = (await client.list_runs(status="paused", limit=100)).items
            except NotAllowedError as error:
                parked, refused = [], error
            except Exception:  # it starts or stops just now; the next look will tell
                continue
            for run in parked:
                if run.pause is not None and run.run_id not in told:
                    told.add(run.run_id)
                    _tell_parked(run)
            if process.pid != replayed:
                if not replayed:
                    say(f"Ready: {urls[0]} is the page, {urls[0]}/docs the API.")
                replayed = process.pid
                if refused is not None:
                    remedy = "set AGNT5_API_KEY to a key that may read"
                    warn(f"parked runs, and those that an edit no longer fits, cannot be told of: {refused} ({remedy})")
                    continue
                for one in await self._unfit(urls[0]):
                    if one["run_id"] not in told:
                        told.add(one["run_id"])
                        _tell_unfit(one["run_id"], one["detail"])

    async def _unfit(self, url: str) -> list[dict[str, Any]]:
        """The live runs that today's code cannot replay, found in a process of its own: it loads the modules afresh."""
        found = []
        for module in self._modules:
            replay = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agnt5_engine.cli", "replay", module, "--all", "--json", "--url", url,
                env={**os.environ, **self._environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                out, _ = await replay.communicate()
            except asyncio.CancelledError:
                replay.kill()
                await replay.wait()
                raise
            try:
                found += [one for one in json.loads(out)["items"] if one["verdict"] == "no"]
            except ValueError:
                continue  # the module does not load, which the engine itself has said
        return found

    def _key(self) -> str | None:
        return self._settings.api_key.get_secret_value() if self._settings.api_key else None

    async def _first(self, *events: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


_IGNORED = frozenset(
    {"__pycache__", ".git", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
)


def _tell_parked(run: Run) -> None:
    assert run.pause is not None
    if run.pause.reason == "non_determinism":
        _tell_unfit(run.run_id, run.pause.detail)
        return
    warn(
        f"run {run.run_id} of {run.workflow} is parked ({run.pause.reason}): {run.pause.detail}\n"
        f"  Once that is mended: agnt5 runs retry {run.run_id}. Or give it up: agnt5 runs cancel {run.run_id}"
    )


def _tell_unfit(run_id: str, detail: str) -> None:
    warn(
        f"the code no longer fits a live run, which waits: {detail}\n"
        "  Either undo the edit, and the run goes on by itself;\n"
        '  or keep the old way for runs from before: if ctx.patched("NAME"): the new way, else: the old one;\n'
        f"  or give the run up: agnt5 runs cancel {run_id}"
    )

"""`agnt5 doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from agnt5_engine.cli import reach, terminal
from agnt5_engine.cli.exits import FAILED
from agnt5_engine.cli.processor import Broker
from agnt5_engine.cli.terminal import command, print_json, stdout

if TYPE_CHECKING:
    from agnt5_engine.settings import Settings
    from agnt5_engine.transport.base import Log

BROKER_SECONDS = 10.0
CLOCK_SECONDS = 2.0
_BROKER_REMEDY = "Is the broker running, and AGNT5_BROKER right?"
_PACKAGES = ("agnt5-kafka", "faust-streaming", "aiokafka", "rocksdict", "pydantic", "fastapi", "uvloop")


class Finding(NamedTuple):
    """One thing looked at. `state` is ok, warning or wrong; `remedy` says what to do."""

    what: str
    state: str
    detail: str
    remedy: str = ""


def add_to(app: typer.Typer) -> None:
    app.command("doctor", epilog="Example:  agnt5 doctor --broker kafka://localhost:9092")(doctor)


@command
def doctor(
    broker: Broker = None, url: reach.Url = None, api_key: reach.Key = None, json: terminal.Json = False
) -> None:
    """Look at versions, settings, data directory, broker, topics, group, clock. Exits with 1 if something is wrong."""
    from agnt5_engine.settings import load_settings

    settings = load_settings(broker=broker, url=url, api_key=api_key)
    findings = [*_versions(), *_data_dir(settings), *_security(settings)]
    served = _processors(settings)
    findings += served
    running = any(one.what == "processors" and one.state == "ok" for one in served)
    findings += asyncio.run(_log(settings, running=running))
    if json:
        print_json({"items": [one._asdict() for one in findings], "next_cursor": None})
    else:
        _show(findings)
    if any(one.state == "wrong" for one in findings):
        raise typer.Exit(FAILED)


def _show(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warning": "yellow", "wrong": "red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        detail = f"{one.detail}. {one.remedy}" if one.remedy else one.detail
        table.add_row(Text(one.state, style=colours[one.state]), Text(one.what), Text(detail))
    stdout().print(table)


def _versions() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    found = [f"Python {sys.version.split()[0]}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if name != "uvloop":
                yield Finding("versions", "wrong", f"{name} is not installed", "Install agnt5-kafka again")
    yield Finding("versions", "ok", ", ".join(found))


def _data_dir(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        yield Finding("data directory", "wrong", f"{folder} cannot be written", "Set AGNT5_DATA_DIR, or mend its owner")
        return
    stat = os.statvfs(existing)
    free = stat.f_bavail * stat.f_frsize
    if free < 2**30:
        detail = f"{folder} has only {free // 2**20} MiB left"
        yield Finding("data directory", "warning", detail, "Make room: a full disk stops the engine")
    else:
        yield Finding("data directory", "ok", f"{folder}, {free / 2**30:.0f} GiB free")


def _security(settings: Settings) -> Iterator[Finding]:
    from agnt5_engine.settings import is_loopback

    if settings.api_keys:
        yield Finding("API keys", "ok", f"{len(settings.api_keys)} set")
    elif is_loopback(settings.http_host):
        yield Finding("API keys", "ok", f"none, and {settings.http} is reachable from this machine only")
    if settings.webhook_secrets:
        yield Finding("webhooks", "ok", f"secrets are set for {', '.join(sorted(settings.webhook_secrets))}")


def _processors(settings: Settings) -> list[Finding]:
    """Who runs, whether they are ready, and how their clock goes."""
    from email.utils import parsedate_to_datetime

    import httpx

    from agnt5.client.sync import DEFAULT_URL
    from agnt5.client.wire import key_header
    from agnt5_engine.gateway.addresses import noted

    urls = [settings.url] if settings.url else [*noted(settings.data_dir), DEFAULT_URL]
    url = next((one for one in urls if reach.listens(one)), None)
    if url is None:
        remedy = "Start one: agnt5 processor MODULE"
        return [Finding("processors", "warning", f"none listens at {' or '.join(dict.fromkeys(urls))}", remedy)]
    headers = key_header(settings.api_key.get_secret_value() if settings.api_key else None)
    findings: list[Finding] = []
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=10, trust_env=False) as http:
            ready = http.get("/readyz")
            members = http.get("/v1/processors")
    except httpx.HTTPError as error:
        return [Finding("processors", "wrong", f"{url} does not answer: {type(error).__name__}", "See its log")]
    try:
        told = ready.json()
        told["ready"], told["partitions"]  # whatever else answers here has not both
        items = members.json()["items"] if members.status_code == 200 else []
    except (ValueError, TypeError, KeyError):
        return [Finding("processors", "wrong", f"what listens at {url} is no processor", "Give its address with --url")]
    if members.status_code == 401:
        findings.append(Finding("processors", "wrong", f"{url} wants an API key", "Set AGNT5_API_KEY, or --api-key"))
    elif members.status_code == 200:
        owned = sorted(partition for member in items for partition in member["partitions"])
        listed = ", ".join(f"{member['id']} ({len(member['partitions'])} partitions)" for member in items)
        findings.append(Finding("processors", "ok", listed or url))
        missing = sorted(set(range(settings.partitions)) - set(owned))
        if missing:
            remedy = "If it stays so for longer than AGNT5_SESSION_TIMEOUT, see the processors' logs"
            findings.append(Finding("partitions", "warning", f"nobody owns {missing} just now", remedy))
    if ready.status_code != 200:
        behind = [one["partition"] for one in told["partitions"] if not one["caught_up"]]
        detail = told.get("detail") or f"partitions {behind} are not caught up"
        findings.append(Finding("ready", "warning", f"{url}: {detail}", "Wait, or see its log"))
    if "date" in ready.headers:
        off = abs(parsedate_to_datetime(ready.headers["date"]).timestamp() - time.time())
        if off > CLOCK_SECONDS:
            findings.append(Finding("clock", "warning", f"{url} is {off:.0f} s off from here", "Set both by NTP"))
    return findings


async def _log(settings: Settings, *, running: bool) -> list[Finding]:
    from agnt5_engine.transport import open_log
    from agnt5_engine.transport.base import TransportError

    if settings.is_embedded and (running or not settings.embedded_dir.exists()):
        detail = "in use by the processor" if running else "nothing there yet"
        return [Finding("log", "ok", f"embedded, {settings.embedded_dir}: {detail}")]
    try:
        log = open_log(settings.broker, settings)
    except (TransportError, OSError) as error:
        return [Finding("log", "wrong", str(error), "See the message")]
    try:
        async with asyncio.timeout(BROKER_SECONDS):
            return [one async for one in _broker(log, settings)]
    except TimeoutError:
        detail = f"{settings.broker} did not answer within {BROKER_SECONDS:.0f} s"
        return [Finding("log", "wrong", detail, _BROKER_REMEDY)]
    except (TransportError, OSError) as error:
        return [Finding("log", "wrong", f"{settings.broker}: {error}", _BROKER_REMEDY)]
    finally:
        await log.close()


async def _broker(log: Log, settings: Settings) -> AsyncIterator[Finding]:
    from agnt5_engine import topics
    from agnt5_engine.transport.base import TopicPartition

    cluster = await log.cluster_id()
    yield Finding("log", "ok", f"{settings.broker}, cluster {cluster}")
    wanted = topics.specs(settings)
    found = await log.topics([spec.name for spec in wanted])
    faults = [fault for spec in wanted if spec.name in found for fault in topics.contradictions(spec, found[spec.name])]
    for fault in faults:
        yield Finding("topics", "wrong", fault)
    missing = [spec.name for spec in wanted if spec.name not in found]
    if missing:
        how = "A processor creates them" if settings.create_topics else "Create them: agnt5 topics apply"
        yield Finding("topics", "warning", f"missing: {', '.join(missing)}", how)
    elif not faults:
        yield Finding("topics", "ok", ", ".join(spec.name for spec in wanted))
    if settings.is_embedded or settings.journal_topic not in found:
        return
    for fragile in _fragile(found):
        yield fragile
    now = time.time() * 1000
    latest = 0
    behind = 0
    for partition in range(found[settings.journal_topic].partitions):
        journal = TopicPartition(settings.journal_topic, partition)
        start, end = await log.bounds(journal)
        committed = await log.committed(settings.group, journal)
        behind += max(0, end - max(start, committed or 0))
        if end > start:
            async for batch in log.read(journal, max(start, end - 2), end):
                latest = max([latest, *(record.time for record in batch.records)])
    yield Finding("group", "ok", f"{settings.group}: {behind} journal records since its checkpoints")
    if latest > now + CLOCK_SECONDS * 1000:
        detail = f"the broker's clock is at least {(latest - now) / 1000:.0f} s ahead of this machine's"
        yield Finding("clock", "warning", detail, "Set both by NTP: timers go by the broker's clock")
    else:
        yield Finding("clock", "ok", f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}")


def _fragile(found: dict[str, Any]) -> Iterator[Finding]:
    for name, info in found.items():
        replicas = info.config.get("min.insync.replicas")
        if info.config.get("unclean.leader.election.enable") == "true":
            remedy = f"Set unclean.leader.election.enable=false on {name}"
            yield Finding("topics", "wrong", f"{name} may lose acknowledged records when a broker dies", remedy)
        if replicas == "1":
            remedy = "With 3 brokers or more set min.insync.replicas=2"
            yield Finding("topics", "warning", f"{name}: one replica's word is enough for an ack", remedy)

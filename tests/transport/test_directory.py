"""A directory that cannot be used as it is says so, with the path and the remedy, and loses nothing by being tried."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agnt5_engine.slots import Slot
from agnt5_engine.transport.base import BadTopicError, Message, RetriableError, TopicPartition, TransportError
from agnt5_engine.transport.embedded.log import EmbeddedLog, open_log
from agnt5_engine.transport.embedded.store import StoreError, WriteBatch
from tests.transport.clusters import Directory, everything, made, spec

_ROOT = Path(__file__).parent.parent.parent
JOURNAL = TopicPartition("journal", 0)


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        check=False,
    )


_OPEN = """
import sys
from agnt5_engine.transport.base import TransportError
from agnt5_engine.transport.embedded.log import open_log
try:
    open_log(sys.argv[1])
except TransportError as error:
    sys.exit(str(error))
"""


async def test_what_the_engine_makes_to_keep_payloads_in_is_closed_to_other_users(
    tmp_path: Path,
) -> None:
    log = open_log(f"embedded://{tmp_path}/data")
    assert (tmp_path / "data" / "log").stat().st_mode & 0o077 == 0
    await log.close()
    slot = Slot(tmp_path / "tables")
    assert slot.folder.stat().st_mode & 0o077 == 0
    slot.release()


async def test_a_second_process_is_told_which_process_has_the_directory(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "data")
    log = directory.open()
    assert isinstance(log, EmbeddedLog)
    log.store.announce("http://127.0.0.1:8081")
    second = _run(_OPEN, directory.url)
    assert second.returncode == 1
    assert str(tmp_path / "data") in second.stderr
    assert f"process {os.getpid()} (http://127.0.0.1:8081)" in second.stderr
    assert "AGNT5_BROKER" in second.stderr
    await log.close()
    assert _run(_OPEN, directory.url).returncode == 0


async def test_all_of_one_process_share_the_log_until_the_last_has_closed_it(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "data")
    first, second = directory.open(), open_log(f"embedded://{tmp_path}/x/../data")
    assert first is second
    target = await made(first, "journal")
    await first.close()
    assert (await second.append(target, [Message(b"a", b"")])).offset == 0
    await second.close()
    third = directory.open()
    assert third is not second
    assert await third.bounds(target) == (0, 1)
    await third.close()


async def test_the_directory_keeps_the_case_of_its_name_and_may_be_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = open_log("embedded://Data Dir/Sub")
    assert (tmp_path / "Data Dir" / "Sub" / "log" / "CURRENT").exists()
    await log.close()


async def test_a_newer_format_is_refused_naming_both_versions(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "data")
    log = directory.open()
    assert isinstance(log, EmbeddedLog)
    batch = WriteBatch(raw_mode=True)
    batch.put(b"f", struct.pack(">I", 7))
    log.store.write(batch)
    await log.close()
    with pytest.raises(StoreError, match=r"its format is 7, this version reads up to 1\. Upgrade agnt5-kafka"):
        directory.open()


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/data/log.*AGNT5_BROKER"):
        open_log(f"embedded://{tmp_path}/file/data")


async def _filled(path: Path, *, flushed: bool) -> int:
    """A directory as kill -9 leaves it; returns how many records were acknowledged."""
    live = Directory(path.parent / "live")
    log = live.open()
    assert isinstance(log, EmbeddedLog)
    await log.create([spec("journal")], 1)
    for n in range(100):
        await log.append(JOURNAL, [Message(b"%d.%d" % (n, k), os.urandom(100)) for k in range(20)])
    if flushed:
        log.store.db.flush()
        log.store.note_files()
        log.store.note_files()
        await log.append(JOURNAL, [Message(b"last", b"")])
    shutil.copytree(path.parent / "live", path)
    await log.close()
    return 2001 if flushed else 2000


async def _read_all(directory: Directory) -> int:
    log = directory.open()
    try:
        return len(await everything(log, JOURNAL))
    finally:
        await log.close()


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 2 // 3)


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


DAMAGES: list[Callable[[Path], None]] = [_truncate, _flip, Path.unlink]


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_is_an_error_with_path_and_remedy_and_never_a_silent_loss(
    tmp_path: Path, damage: Callable[[Path], None], flushed: bool
) -> None:
    good = tmp_path / "good"
    count = await _filled(good, flushed=flushed)
    files = [path.name for path in (good / "log").iterdir()]
    precious = [name for name in files if name.endswith((".log", ".sst", ".blob")) or name.startswith(("MANI", "CURR"))]
    assert len(precious) >= (5 if flushed else 3)
    for name in precious:
        path = tmp_path / f"{name}-damaged"
        shutil.copytree(good, path)
        damage(path / "log" / name)
        with pytest.raises(StoreError) as raised:
            await _read_all(Directory(path))
        assert f"the log in {path / 'log'} is damaged" in str(raised.value), name
        assert "restore the whole directory" in str(raised.value)
        shutil.copy(good / "log" / name, path / "log" / name)
        if name.endswith(".log"):
            assert await _read_all(Directory(path)) == count, "the look at the damaged log made it worse"
    assert await _read_all(Directory(good)) == count


async def test_an_unacknowledged_end_that_a_power_cut_tore_is_dropped(tmp_path: Path) -> None:
    """The disk may have written the end of the log out of order: unreadable first, readable after it."""
    live = Directory(tmp_path / "live")
    log = live.open()
    assert isinstance(log, EmbeddedLog)
    await log.create([spec("journal")], 1)
    await log.append(JOURNAL, [Message(b"promised", b"x" * 1000)] * 50)
    shutil.copy(tmp_path / "live" / "log" / "ACKED", tmp_path / "acked")
    (wal,) = (tmp_path / "live" / "log").glob("*.log")
    promised = wal.stat().st_size
    for _ in range(3):
        await log.append(JOURNAL, [Message(b"not promised", b"x" * 1000)] * 50)
    shutil.copytree(tmp_path / "live", tmp_path / "cut")
    await log.close()
    shutil.copy(tmp_path / "acked", tmp_path / "cut" / "log" / "ACKED")
    data = bytearray((tmp_path / "cut" / "log" / wal.name).read_bytes())
    data[promised + 100] ^= 0xFF
    (tmp_path / "cut" / "log" / wal.name).write_bytes(data)
    cut = Directory(tmp_path / "cut").open()
    assert {r.key for r in await everything(cut, JOURNAL)} == {b"promised"}
    assert (await cut.append(JOURNAL, [Message(b"next", b"")])).offset == 50
    await cut.close()


_FULL = """
import asyncio, json, os, resource, sys
from agnt5_engine.transport.base import BadTopicError, Message, RetriableError, TopicPartition
from agnt5_engine.transport.embedded.log import open_log
from tests.transport.clusters import everything, spec

async def main():
    log = open_log(sys.argv[1])
    journal = TopicPartition("journal", 0)
    await log.create([spec("journal")], 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    acked, error = 0, ""
    try:
        while True:
            await log.append(journal, [Message(b"k", os.urandom(1000)) for _ in range(10)])
            acked += 10
    except RetriableError as full:
        error = str(full)
    visible = (await log.bounds(journal))[1]
    again = ""
    try:
        await log.append(journal, [Message(b"k", b"x")])
    except RetriableError as full:
        again = str(full)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    await asyncio.sleep(1.1)  # now it is opened again, in vain
    try:
        await log.append(journal, [Message(b"k", b"x")])
        raise AssertionError("there is no room")
    except RetriableError:
        pass
    assert len(await everything(log, journal)) == visible, "what there is can be read meanwhile"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    while True:
        try:
            next_ = (await log.append(journal, [Message(b"after", b"x")])).offset
            break
        except RetriableError:
            await asyncio.sleep(0.1)
    await log.close()
    print(json.dumps([acked, visible, next_, error, again]))

asyncio.run(main())
"""


async def test_with_no_room_left_nothing_is_acknowledged_and_room_made_writing_goes_on(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "data")
    done = _run(_FULL, directory.url)
    assert done.returncode == 0, done.stderr
    acked, visible, following, error, again = json.loads(done.stdout)
    assert 0 < acked == visible
    assert f"no room left on the disk that holds {tmp_path / 'data' / 'log'}" in error
    assert "Free some space" in error
    assert again == error
    log = directory.open()
    records = await everything(log, JOURNAL)
    assert len(records) == following + 1
    assert records[-1].key == b"after"
    assert following - acked in (0, 10), "of the refused append, all is there or nothing"
    await log.close()


async def test_a_first_start_that_finds_no_room_says_so_and_the_next_in_the_same_process_finds_the_room_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory(tmp_path / "data")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        with pytest.raises(RetriableError, match="no room left on the disk"):
            directory.open()
    log = directory.open()
    await made(log, "journal")
    await log.close()


async def test_a_failed_sync_acknowledges_nothing(embedded: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    target = await made(embedded, "journal")
    sync = embedded.store.sync

    def broken() -> None:
        raise RetriableError("the disk is gone")

    monkeypatch.setattr(embedded.store, "sync", broken)
    monkeypatch.setattr("agnt5_engine.transport.embedded.group_commit._REOPEN_SECONDS", 0.0)
    with pytest.raises(TransportError, match="the disk is gone"):
        await embedded.append(target, [Message(b"a", b"")])
    assert await embedded.bounds(target) == (0, 0)
    monkeypatch.setattr(embedded.store, "sync", sync)
    offset = (await embedded.append(target, [Message(b"b", b"")])).offset
    records = await everything(embedded, target)
    assert [r.offset for r in records] == list(range(offset + 1))
    assert records[-1].key == b"b"


async def test_a_topic_that_found_no_room_is_not_there_and_what_is_appended_once_it_is_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory(tmp_path / "data")
    log = directory.open()
    assert isinstance(log, EmbeddedLog)
    events = TopicPartition("events", 0)

    def full(batch: object) -> int:
        raise RetriableError("no room")

    monkeypatch.setattr("agnt5_engine.transport.embedded.group_commit._REOPEN_SECONDS", 0.0)
    with monkeypatch.context() as disk:
        disk.setattr(log.store, "write", full)
        with pytest.raises(RetriableError, match="no room"):
            await log.create([spec("events")], 1)
    assert await log.topics(["events"]) == {}
    with pytest.raises(BadTopicError, match="does not exist"):
        await log.append(events, [Message(b"a", b"")])
    await asyncio.gather(log.create([spec("events")], 1), log.create([spec("others"), spec("events")], 1))
    await log.append(events, [Message(b"b", b"")])
    await log.append(TopicPartition("others", 0), [Message(b"c", b"")])
    await log.close()
    log = directory.open()
    assert [r.key for r in await everything(log, events)] == [b"b"]
    assert [r.key for r in await everything(log, TopicPartition("others", 0))] == [b"c"]
    await log.close()

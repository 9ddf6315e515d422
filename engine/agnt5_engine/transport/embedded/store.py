"""The RocksDB under DIR/log: its keys, how it is opened and locked, and what is said when it cannot be read.

One key space, told apart by the first byte:

    f                                    format version
    i                                    cluster ID
    t <name>                             a topic, as JSON
    p <topic> <partition>                a partition's bounds (`topics.Partition`)
    g <topic> <partition> <group>        a group's offset
    e <transactional id>                 a fencing epoch
    r <topic> <partition> <offset>       a batch of records (`batches`), by its first offset

Topic and partition are 4 bytes, offsets 8, all big-endian, so that a partition's batches lie in offset order.
"""

from __future__ import annotations

import contextlib
import enum
import shutil
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import rocksdict

from agnt5_engine.transport.base import RetriableError, TransportError
from agnt5_engine.transport.embedded.acked import AckedMark
from agnt5_engine.transport.embedded.lock import Lock, StoreError

FORMAT: Final = 1
SCHEME: Final = "embedded://"

_FORMAT_KEY = b"f"
_CLUSTER_KEY = b"i"
_TOPIC = b"t"
_PARTITION = struct.Struct(">cII")
_OFFSET = struct.Struct(">Q")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")

_MIB = 1 << 20
_ROOM_TO_OPEN = 8 * _MIB
#: Signs of a full disk in RocksDB's errors.
NO_ROOM = ("No space left", "Disk quota exceeded", "File too large", "no space", "NoSpace")

WriteBatch = rocksdict.WriteBatch


def directory_of(url: str) -> Path:
    """The directory of an `embedded://DIR` URL, made absolute."""
    if not url.startswith(SCHEME) or len(url) == len(SCHEME):
        raise StoreError(f"{url!r} is not the URL of an embedded log; write embedded://DIR")
    return Path(url[len(SCHEME) :]).expanduser().absolute()


def records_prefix(topic: int, partition: int) -> bytes:
    return _PARTITION.pack(b"r", topic, partition)


def bounds_key(topic: int, partition: int) -> bytes:
    return _PARTITION.pack(b"p", topic, partition)


def group_key(topic: int, partition: int, group: str) -> bytes:
    return _PARTITION.pack(b"g", topic, partition) + group.encode()


def split_group_key(key: bytes) -> tuple[int, int, str]:
    _, topic, partition = _PARTITION.unpack_from(key)
    return topic, partition, key[_PARTITION.size :].decode()


def topic_key(name: str) -> bytes:
    return _TOPIC + name.encode()


def epoch_key(transactional_id: str) -> bytes:
    return b"e" + transactional_id.encode()


def offset_bytes(offset: int) -> bytes:
    return _OFFSET.pack(offset)


def offset_of(key_or_value: bytes) -> int:
    """The offset that ends a record key, or that is a group's value."""
    return int.from_bytes(key_or_value[-8:], "big")


class Store:
    """One open RocksDB. Not for use from several threads, but for `sync`, which may run beside everything else."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "log"
        self._lock = Lock(self.path)
        try:
            self._acked = AckedMark(self.path / "ACKED")
        except OSError as error:
            self._lock.release()
            raise self.explain(error) from error
        try:
            self.db = self._open()
            self.cluster_id = self._identity()
        except BaseException:
            self._acked.close()
            self._lock.release()
            raise

    # -- opening

    def _open(self) -> Any:
        tail = _Tail.WHOLE
        if (self.path / "CURRENT").exists():
            tail = self._inspect()
        try:
            return rocksdict.Rdict(str(self.path), _options(tail))
        except Exception as error:
            raise self.explain(error) from error

    def _inspect(self) -> _Tail:
        """Look before touching: opening for writing drops what it cannot read, and files of a newer format.

        After a power cut the end of the write-ahead log may be torn. That is harmless when all that was acknowledged
        lies before the tear.
        """
        acked = self._acked.read()
        shrunk = self._acked.shrunk_manifest()
        if shrunk:
            raise self.damaged(shrunk)
        trouble: Exception | None = None
        for tail in _Tail:
            try:
                look = rocksdict.Rdict(
                    str(self.path), _options(tail), access_type=rocksdict.AccessType.read_only(False)
                )
            except Exception as error:
                if "Corruption" not in str(error):
                    raise self.explain(error) from error
                trouble = trouble or error
                continue
            try:
                version = look.get(_FORMAT_KEY)
                sequence = look.latest_sequence_number()
            except Exception as error:
                raise self.explain(error) from error
            finally:
                look.close()
            if version is not None and (found := _U32.unpack(version)[0]) > FORMAT:
                raise StoreError(
                    f"{self.path} was written by a newer version: its format is {found}, this version reads up to "
                    f"{FORMAT}. Upgrade agnt5-kafka, or point AGNT5_BROKER at another directory."
                )
            if sequence < acked:
                lack = f"it lacks the last {acked - sequence} writes that were acknowledged"
                raise self.damaged(f"{lack} ({trouble})" if trouble else lack)
            if version is None and sequence > 0:
                raise self.damaged("its beginning is gone")
            return tail
        raise self.damaged(str(trouble))

    def _identity(self) -> str:
        stored = self.get(_FORMAT_KEY)
        if stored is None:
            cluster_id = str(uuid.uuid4())
            batch = WriteBatch(raw_mode=True)
            batch.put(_FORMAT_KEY, _U32.pack(FORMAT))
            batch.put(_CLUSTER_KEY, cluster_id.encode())
            self.write(batch)
            self.sync()
            return cluster_id
        name = self.get(_CLUSTER_KEY)
        if name is None:
            raise self.damaged("it has no cluster ID")
        return name.decode()

    def announce(self, url: str) -> None:
        """Note where this process can be reached, for whoever finds the directory locked."""
        self._lock.note(url)

    # -- reading

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self.db.get(key)
        except Exception as error:
            raise self.explain(error) from error
        return value

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Every pair under a prefix, in key order."""
        entries = self.db.iter()
        entries.seek(prefix)
        while entries.valid():
            key = entries.key()
            if not key.startswith(prefix):
                return
            yield key, entries.value()
            entries.next()
        self.check(entries)

    def check(self, entries: Any) -> None:
        """An iterator that stopped has either come to the end or to something unreadable."""
        try:
            entries.status()
        except Exception as error:
            raise self.explain(error) from error

    # -- writing

    def write(self, batch: Any) -> int:
        """Apply a batch as one atom, not yet durable; returns the sequence number that `sync` then acknowledges."""
        try:
            self.db.write(batch)
        except Exception as error:
            raise self.explain(error) from error
        return int(self.db.latest_sequence_number())

    def sync(self) -> None:
        """Make durable all that was written. Blocks without holding the interpreter, so call it on a thread."""
        try:
            self.db.flush_wal(True)
        except Exception as error:
            raise self.explain(error) from error

    def acknowledge(self, sequence: int) -> None:
        """Note that all up to `sequence` is durable and will be relied upon: an open that finds less is refused."""
        self._acked.write(sequence)

    def note_files(self) -> None:
        """Note how far RocksDB's list of files has come. To be called now and then."""
        self._acked.note_manifest()

    def reopen(self) -> None:
        """Start over from what is on the disk, after a write failed. While that cannot be written to, it is read."""
        if (free := _free_bytes(self.path)) < _ROOM_TO_OPEN:
            raise self._no_room(f"{free} bytes are free")
        with contextlib.suppress(Exception):
            self.db.close()
        try:
            self.db = self._open()
        except TransportError:
            with contextlib.suppress(Exception):
                self.db = rocksdict.Rdict(
                    str(self.path), _options(_Tail.TORN), access_type=rocksdict.AccessType.read_only(False)
                )
            raise

    def close(self) -> None:
        with contextlib.suppress(Exception):  # after a failed write RocksDB may refuse; what counts is synced
            self.db.close()
            self._acked.note_manifest()
        self._acked.close()
        self._lock.release()

    # -- errors

    def explain(self, error: Exception) -> TransportError:
        """RocksDB's error as ours."""
        text = str(error)
        if any(sign in text for sign in NO_ROOM):
            return self._no_room(text)
        if "lock" in text.lower() and "LOCK" in text:
            return self._lock.held_error()
        if "Corruption" in text or "No such file" in text or "checksum" in text.lower():
            return self.damaged(text)
        return StoreError(f"the log in {self.path} failed: {text}")

    def _no_room(self, detail: str) -> RetriableError:
        return RetriableError(
            f"no room left on the disk that holds {self.path}: nothing of this write was acknowledged. Free some "
            f"space; writing goes on by itself then. ({detail})"
        )

    def damaged(self, what: str) -> StoreError:
        """The error for a log that has lost something, and the remedies."""
        return StoreError(
            f"the log in {self.path} is damaged: {what}. Stop, and restore the whole directory {self.directory} from "
            f"a backup; without one, move {self.path} away to start with an empty log (its runs are lost), or, when "
            f"only its end is gone and you accept that, delete {self.path / 'ACKED'}."
        )


def _free_bytes(path: Path) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 1 << 62  # whoever opens it finds out


class _Tail(enum.Enum):
    """What to make of the end of the write-ahead log."""

    WHOLE = enum.auto()  # a last record that is incomplete is dropped, anything else unreadable is an error
    TORN = enum.auto()  # everything from the first unreadable record on is dropped


def _options(tail: _Tail) -> Any:
    """Small in memory (16 MiB of cache, at most 3 memtables of 16 MiB), quick to append.

    Batches of more than 512 bytes go to blob files, so that compaction of the key tree moves keys, not records.
    """
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(16 * _MIB))
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(16 * _MIB)
    options.set_max_write_buffer_number(3)
    options.set_max_total_wal_size(64 * _MIB)
    options.set_max_background_jobs(2)
    options.set_max_open_files(256)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_enable_blob_files(True)
    options.set_min_blob_size(512)
    options.set_blob_file_size(64 * _MIB)
    options.set_blob_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_enable_blob_gc(True)
    options.set_bytes_per_sync(_MIB)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(_MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_paranoid_checks(True)
    mode = rocksdict.DBRecoveryMode
    whole = tail is _Tail.WHOLE
    options.set_wal_recovery_mode(mode.tolerate_corrupted_tail_records() if whole else mode.point_in_time())
    return options

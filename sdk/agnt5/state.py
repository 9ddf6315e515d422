"""The three scopes of state: of the run, of its session, of its user. All have the same methods, and all are awaited.

Values are JSON: what `get` returns is a copy, and changing it changes nothing until it is `set`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from agnt5.codec import decode_plain
from agnt5.replay.entries import Chain, Entry, Operation, Site, caller
from agnt5.replay.pending import Pending
from agnt5.replay.protocol import UserStateAsk
from agnt5.replay.session import Look, SessionRead, SessionUpdate, SessionWrite

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation

Values = Mapping[str, bytes]
Change = Callable[[Any], Any]


class State(ABC):
    """One scope of state, a mapping of text to JSON values."""

    __slots__ = ("_activation",)
    _scope: str

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def get(self, key: str, default: Any = None) -> Coroutine[Any, Any, Any]:
        """The value at `key`, or `default`."""
        self._check(key)
        return self._read(
            f"get({key!r})", lambda values: values.get(key, b""), lambda data: decode_plain(data) if data else default
        )

    def set(self, key: str, value: Any) -> Coroutine[Any, Any, None]:
        """Put `value` at `key`. Raises EncodeError for what JSON cannot hold, ValueError for what is too large."""
        self._check(key)
        data = self._encoded(key, value)
        return self._write(f"set({key!r})", _changes(put={key: data}))

    def delete(self, key: str) -> Coroutine[Any, Any, None]:
        """Remove `key`; nothing happens when it is not there."""
        self._check(key)
        return self._write(f"delete({key!r})", _changes(delete=[key]))

    def clear(self) -> Coroutine[Any, Any, None]:
        """Remove everything."""
        return self._write("clear()", _changes(clear=True))

    def keys(self) -> Coroutine[Any, Any, list[str]]:
        """All keys, sorted."""
        return self._read("keys()", lambda values: to_json(sorted(values)), decode_plain)

    def to_dict(self) -> Coroutine[Any, Any, dict[str, Any]]:
        """Everything, by key."""
        return self._read("to_dict()", _object, decode_plain)

    def update(self, key: str, fn: Change, default: Any = None) -> Coroutine[Any, Any, Any]:
        """Put `fn(value)` at `key`, atomically, and return it. `fn` is plain and quick; where others write at the same
        time it may be called more than once."""
        self._check(key)
        if not callable(fn):
            raise TypeError(f"update takes a function of the old value, not {fn!r}")

        def change(data: bytes) -> tuple[Any, bytes]:
            new = self._encoded(key, fn(decode_plain(data) if data else default))
            return decode_plain(new), _changes(put={key: new})

        return self._update(f"update({key!r})", lambda values: values.get(key, b""), change)

    def _encoded(self, key: str, value: Any) -> bytes:
        return self._activation.encoded(value, f"the value of {key!r} in {self._scope}")

    def _check(self, key: object) -> None:
        if not isinstance(key, str) or not key:
            raise TypeError(f"a key of {self._scope} must be text that is not empty, not {key!r}")

    def _label(self, call: str) -> str:
        return f"{self._scope}.{call}"

    @abstractmethod
    def _read(self, call: str, look: Look, decode: Callable[[bytes], Any]) -> Operation[Any]: ...

    @abstractmethod
    def _write(self, call: str, changes: bytes) -> Operation[Any]: ...

    @abstractmethod
    def _update(self, call: str, look: Look, change: Callable[[bytes], tuple[Any, bytes]]) -> Operation[Any]: ...


class RunState(State):
    """`ctx.state`: of this run alone, gone when it has ended. Made anew by every replay, so nothing is recorded."""

    __slots__ = ()
    _scope = "ctx.state"

    def _read(self, call: str, look: Look, decode: Callable[[bytes], Any]) -> Operation[Any]:
        return _Now(self._activation, self._label(call), lambda: decode(look(self._activation.state)), caller(3))

    def _write(self, call: str, changes: bytes) -> Operation[Any]:
        return _Now(
            self._activation, self._label(call), lambda: apply_changes(self._activation.state, changes), caller(3)
        )

    def _update(self, call: str, look: Look, change: Callable[[bytes], tuple[Any, bytes]]) -> Operation[Any]:
        def update() -> Any:
            value, changes = change(look(self._activation.state))
            apply_changes(self._activation.state, changes)
            return value

        return _Now(self._activation, self._label(call), update, caller(3))


class SessionState(State):
    """`ctx.session.state`: shared by all runs of the session, one after the other.

    `get` then `set` with no other durable operation between is atomic among them."""

    __slots__ = ()
    _scope = "ctx.session.state"

    def _read(self, call: str, look: Look, decode: Callable[[bytes], Any]) -> Operation[Any]:
        path = self._activation.branch().take()
        return SessionRead(self._activation, path, look, decode, self._label(call), caller(3))

    def _write(self, call: str, changes: bytes) -> Operation[Any]:
        return SessionWrite(self._activation, self._activation.branch().take(), changes, self._label(call), caller(3))

    def _update(self, call: str, look: Look, change: Callable[[bytes], tuple[Any, bytes]]) -> Operation[Any]:
        path = self._activation.branch().take()
        return SessionUpdate(self._activation, path, self._label(call), caller(3), look, change)


class UserState(State):
    """`ctx.user.state`: shared by all runs of the user, wherever they run. Every call is a durable operation; only
    `update` is atomic."""

    __slots__ = ()
    _scope = "ctx.user.state"

    def _read(self, call: str, look: Look, decode: Callable[[bytes], Any]) -> Operation[Any]:
        ask = UserStateAsk(self._activation.branch().take(), "read", b"", None)
        return Entry(self._activation, ask, caller(3), lambda data: decode(look(_seen(data).values)))

    def _write(self, call: str, changes: bytes) -> Operation[Any]:
        ask = UserStateAsk(self._activation.branch().take(), "write", changes, None)
        return Entry(self._activation, ask, caller(3), None)

    def _update(self, call: str, look: Look, change: Callable[[bytes], tuple[Any, bytes]]) -> Operation[Any]:
        path = self._activation.branch().take()
        return _UserUpdate(self._activation, path, self._label(call), caller(3), look, change)


# ------------------------------------------------------------------ changes as data


def _changes(put: Mapping[str, bytes] | None = None, delete: list[str] | None = None, clear: bool = False) -> bytes:
    return b'{"set":%b,"delete":%b,"clear":%b}' % (
        _object(put or {}),
        to_json(delete or []),
        b"true" if clear else b"false",
    )


def _object(values: Values) -> bytes:
    return b"{%b}" % b",".join(to_json(key) + b":" + values[key] for key in sorted(values))


def apply_changes(values: dict[str, bytes], changes: bytes) -> None:
    """Do to `values` what a WriteAsk's or UserStateAsk's `changes` say."""
    told = from_json(changes)
    if told.get("clear"):
        values.clear()
    for key in told.get("delete") or ():
        values.pop(key, None)
    for key, value in (told.get("set") or {}).items():
        values[key] = to_json(value)


def changed(current: Values, changes: bytes) -> dict[str, bytes]:
    """A state after the changes of a WriteAsk or UserStateAsk; the old one stays as it was."""
    values = dict(current)
    apply_changes(values, changes)
    return values


class _Now(Operation[Any]):
    """Done the moment it is awaited."""

    __slots__ = ("act", "label")

    def __init__(self, activation: Activation, label: str, act: Callable[[], Any], site: Site) -> None:
        super().__init__(activation, site)
        self.label = label
        self.act = act

    def _ask(self) -> None:
        try:
            self.finish(self.act())
        except Exception as error:
            self.fail(error)

    def described(self) -> str:
        return self.label


class _Seen:
    """A user's state as a reply brought it."""

    __slots__ = ("applied", "values", "version")

    def __init__(self, version: int, values: dict[str, bytes], applied: bool) -> None:
        self.version = version
        self.values = values
        self.applied = applied


def _seen(data: bytes) -> _Seen:
    reply = decode_plain(data)
    values = {key: to_json(value) for key, value in (reply.get("state") or {}).items()}
    return _Seen(reply["version"], values, reply.get("applied", False))


class _UserUpdate(Chain[Any]):
    """Read, then write what follows from it if nobody has written meanwhile; again with what the reply shows."""

    __slots__ = ("change", "look", "value")

    def __init__(
        self,
        activation: Activation,
        path: str,
        label: str,
        site: Site,
        look: Look,
        change: Callable[[bytes], tuple[Any, bytes]],
    ) -> None:
        super().__init__(activation, path, label, site)
        self.look = look
        self.change = change
        self.value: Any = None

    def first(self) -> None:
        self._start(UserStateAsk(self.next_path(), "read", b"", None))

    def then(self, entry: Pending[Any]) -> None:
        seen: _Seen = entry.result()
        if seen.applied:
            self.finish(self.value)
            return
        self.value, changes = self.change(self.look(seen.values))
        self._start(UserStateAsk(self.next_path(), "write", changes, seen.version))

    def _start(self, ask: UserStateAsk) -> None:
        self.start(Entry(self.activation, ask, self.site, _seen))

"""Child runs: how they are started, named and spoken to."""

from __future__ import annotations

import base64
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from agnt5 import registry
from agnt5.codec import check_text
from agnt5.replay.entries import Entry, Operation, Site, caller
from agnt5.replay.pending import Pending
from agnt5.replay.protocol import OWN, ChildAsk, ErrorInfo, TellChildAsk

if TYPE_CHECKING:
    from agnt5.replay.activation import Activation

T_co = TypeVar("T_co", covariant=True)


def child_run_id(parent_run_id: str, path: str, given: str | None, session_id: str | None) -> str:
    """The routing key of the session that the child is put into (else the parent's), a dot, and the ID it is given, or
    26 characters of the SHA-256 of parent and path, so that a parent that asks twice starts one child.

    A given ID alone stands for itself: whoever knows it finds the run. Such a child has a session of its own, because a
    session's state is where its key leads."""
    if session_id is not None:
        routing_key = "s" + _base32(sha256(session_id.encode()).digest())[:20]
    elif given is not None:
        return given
    else:
        routing_key = parent_run_id.partition(".")[0]
    return f"{routing_key}.{given or _base32(sha256(f'{parent_run_id}{path}'.encode()).digest())[:26]}"


def id_taken(run_id: str, by: str, wanted: str) -> ErrorInfo:
    """The failure of a child whose ID another workflow's run has."""
    return ErrorInfo("ValueError", f"run {run_id} is of workflow {by!r}: no run of {wanted!r} can have its ID")


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").lower()


def child_of(
    activation: Activation, given: Any, args: tuple[Any, ...], kwargs: dict[str, Any], site: Site
) -> Entry[Any]:
    """The entry for a child run of `given`, a workflow (with options or not) or its name.

    Raises TypeError for what is no workflow, LookupError for an unknown name, InputError for input that does not
    bind: then nothing is started."""
    workflow = registry.workflow(given) if isinstance(given, str) else given
    if not hasattr(workflow, "encode_output"):
        raise TypeError(f"a child run needs a workflow or its name, not {given!r}; a function is called with ctx.step")
    data = activation.checked(workflow.encode_input(args, kwargs), f"the input of child workflow {workflow.name!r}")
    options = workflow.child
    path = activation.branch().take()
    ask = ChildAsk(
        path,
        workflow.name,
        data,
        child_run_id(activation.info.run_id, path, options.id, options.session_id),
        OWN if options.id is not None and options.session_id is None else options.session_id,
        options.user_id,
        options.detached,
    )
    return Entry(activation, ask, site, workflow.decode_output)


class ChildHandle:
    """A child run that was started. `run_id` is known at once."""

    __slots__ = ("_activation", "_entry", "run_id")

    def __init__(self, activation: Activation, entry: Entry[Any]) -> None:
        assert isinstance(entry.ask, ChildAsk)
        self._activation = activation
        self._entry = entry
        self.run_id = entry.ask.run_id

    def result(self) -> Operation[Any]:
        """The child's output, when it has finished. Raises ChildError when it failed. Giving up the wait does not stop
        the child: `cancel` does."""
        return ChildResult(self._activation, self._entry, caller())

    def cancel(self) -> Operation[None]:
        """Ask the child to stop; done when that is on its way, not when it has stopped."""
        return self._tell("cancel", "", b"null", caller())

    def signal(self, name: str, payload: Any = None) -> Operation[None]:
        """Send the child a signal; done when that is on its way."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"a signal's name must be text that is not empty, not {name!r}")
        check_text(name, "a signal's name")
        return self._tell(
            "signal", name, self._activation.encoded(payload, f"the payload of signal {name!r}"), caller()
        )

    def _tell(self, command: str, name: str, payload: bytes, site: Site) -> Operation[None]:
        path = self._activation.branch().take()
        return Entry(self._activation, TellChildAsk(path, self.run_id, command, name, payload), site, None)

    def __repr__(self) -> str:
        return f"<child run {self.run_id}>"


class ChildResult(Operation[T_co]):
    """Waits for a child's end without being what holds the child."""

    __slots__ = ("entry",)

    def __init__(self, activation: Activation, entry: Entry[T_co], site: Site) -> None:
        super().__init__(activation, site)
        self.entry = entry

    def _ask(self) -> None:
        self.entry.add_done_callback(self._ended)

    def _ended(self, entry: Pending[T_co]) -> None:
        if entry.cancelled():
            self.cancel()
        elif (error := entry.exception()) is not None:
            self.fail(error)
        else:
            self.finish(entry.result())

    def _withdraw(self) -> None:
        self.entry.remove_done_callback(self._ended)

    def described(self) -> str:
        return f"handle.result() of {self.entry.described()}"


class ChildStart(Operation[ChildHandle]):
    """`ctx.start(...)`: asks for the child and goes on at once."""

    __slots__ = ("entry",)

    def __init__(self, activation: Activation, entry: Entry[Any], site: Site) -> None:
        super().__init__(activation, site)
        self.entry = entry
        activation.unasked.pop(id(entry))

    def _ask(self) -> None:
        self.activation.unasked[id(self.entry)] = self.entry
        self.entry.begin()
        self.finish(ChildHandle(self.activation, self.entry))

    def described(self) -> str:
        assert isinstance(self.entry.ask, ChildAsk)
        return f"ctx.start({self.entry.ask.workflow})"

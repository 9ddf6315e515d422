"""The client's operations without I/O: generators that say what to send and are told what came back.

One driver per world (`sync.py`, `asynchronous.py`) runs them, so that `Client` and `AsyncClient` cannot differ.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from agnt5.client.errors import ApiError, ConflictError, NotAllowedError, UnavailableError, WaitTimeoutError, refusal
from agnt5.client.models import Problem, Published, Run, Shape, Status, Submitted
from agnt5.codec import encode_plain
from agnt5.errors import EncodeError, RunError

if TYPE_CHECKING:
    from agnt5.replay.history import History

ANSWER_SECONDS = 30.0
LONG_POLL = 25.0
"""Seconds that one request may wait at the server; longer waits are several requests."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
_LAST_ASKED = 0.5
_SHORT_ANSWER = 5.0

Result = TypeVar("Result")
Shaped = TypeVar("Shaped", bound=Shape)


class Call(NamedTuple):
    """One request. `wait` is how long the server may take on purpose (s), `answer` how long beyond that."""

    method: str
    path: str
    query: dict[str, str] = {}  # noqa: RUF012
    headers: dict[str, str] = {}  # noqa: RUF012
    body: bytes | None = None
    wait: float = 0.0
    answer: float = ANSWER_SECONDS


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Lost(NamedTuple):
    """There was no reply. `sent`: the request may have been carried out all the same."""

    reason: str
    sent: bool


class Pause(NamedTuple):
    seconds: float


Step: TypeAlias = Call | Pause
Told: TypeAlias = Reply | Lost | None
Operation: TypeAlias = Generator[Step, Told, Result]


class Answered(NamedTuple):
    """A reply that is no error. `again`: an earlier attempt may have been carried out too."""

    reply: Reply
    again: bool


class Outage:
    """How long nobody has answered, and how long to wait before asking again."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._since: float | None = None
        self._pause = _FIRST_PAUSE

    def over(self) -> None:
        self._since = None
        self._pause = _FIRST_PAUSE

    def next_pause(self, reason: str, asked: float | None = None) -> Pause:
        """Raises UnavailableError when patience is exhausted."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        pause = self._pause if asked is None else min(asked, _LONGEST_PAUSE)
        if now + pause - self._since > self._patience:
            raise UnavailableError(f"{reason} (asked for {now - self._since:.1f} s)")
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return Pause(pause)


def ask(call: Call, patience: float) -> Operation[Answered]:
    """Send until somebody answers. Raises ApiError for a refusal, UnavailableError when patience is exhausted."""
    outage = Outage(patience)
    again = False
    while True:
        told = yield call
        if isinstance(told, Reply):
            if told.status < 300:
                if not told.headers.get("content-type", "").startswith("application/json"):
                    raise ApiError(problem_of(told))  # somebody else's answer: a proxy's login page
                return Answered(told, again)
            after = retry_after(told)
            if after is None:
                error = refusal(problem_of(told))
                if again:
                    error.add_note("An earlier attempt got no answer, and may have been carried out.")
                raise error
            # A processor that passed the request on cannot know what became of it.
            again = True
            yield outage.next_pause(problem_of(told).detail, after)
        else:
            assert isinstance(told, Lost)
            again = again or told.sent
            yield outage.next_pause(told.reason)


def retry_after(reply: Reply) -> float | None:
    """Seconds after which to ask again, when that helps: the reply says so, or is a proxy's that got no answer."""
    after = reply.headers.get("retry-after")
    if reply.status not in (502, 503, 504) or (after is None and _is_problem(reply)):
        return None
    return float(after) if after is not None and after.isdecimal() else 1.0


def _is_problem(reply: Reply) -> bool:
    return reply.headers.get("content-type", "").startswith("application/problem+json")


def problem_of(reply: Reply) -> Problem:
    """The problem document of a reply, also of one that came from something between us and the API."""
    if _is_problem(reply):
        try:
            return Problem.model_validate_json(reply.body)
        except ValidationError:
            pass
    text = reply.body[:200].decode("utf-8", "replace").strip()
    return Problem(title=f"HTTP {reply.status}", status=reply.status, detail=text or f"HTTP {reply.status}")


# ------------------------------------------------------------------ starting and waiting


def start_call(
    kind: str,
    workflow: Any,
    input: Any,
    session_id: str | None,
    user_id: str | None,
    idempotency_key: str | None,
    wait: float | None = None,
) -> Call:
    """A request that starts a run. Without a key of the caller's it gets one of its own, so that sending it again after
    an answer was lost starts nothing twice."""
    headers = {"content-type": "application/json", "idempotency-key": idempotency_key or uuid.uuid4().hex}
    if session_id is not None:
        headers["x-session-id"] = session_id
    if user_id is not None:
        headers["x-user-id"] = user_id
    name = workflow if isinstance(workflow, str) else getattr(workflow, "name", None)
    if not isinstance(name, str) or not name:
        raise TypeError(f"workflow must be a workflow or its name, not {workflow!r}")
    query = {} if wait is None else {"timeout": f"{wait:.3f}"}
    return Call(
        "POST", f"/v1/workflows/{quote(name, safe='')}/{kind}", query, headers, encode_input(input), wait or 0.0
    )


def encode_input(input: Any) -> bytes:
    """A workflow's input object as JSON. Raises TypeError for what is no object."""
    if input is None:
        return b"{}"
    if not isinstance(input, (Mapping, BaseModel)) and not dataclasses.is_dataclass(input):
        raise TypeError(
            f"a workflow's input is an object of its parameters by name, such as {{'order_id': '7'}}, not {input!r}"
        )
    return encode(input)


def encode(value: Any) -> bytes:
    """JSON of a value, written as a workflow writes what it gives to a step: bytes as base64, models by field name."""
    try:
        return encode_plain(value)
    except EncodeError:
        return to_json(value, inf_nan_mode="constants")  # the API refuses NaN, naming the field


def run(
    workflow: Any,
    input: Any,
    session_id: str | None,
    user_id: str | None,
    idempotency_key: str | None,
    timeout: float | None,
    patience: float,
) -> Operation[Any]:
    begun = time.monotonic()
    first = LONG_POLL if timeout is None else min(timeout, LONG_POLL)
    call = start_call("run", workflow, input, session_id, user_id, idempotency_key, first)._replace(
        answer=_answer(timeout)
    )
    answered = yield from ask(call, _patience(patience, timeout))
    if answered.reply.status == 202:
        run_id = Submitted.model_validate_json(answered.reply.body).run_id
        left = None if timeout is None else max(0.0, begun + timeout - time.monotonic())
        ended = yield from wait(run_id, left, patience, timeout)
    else:
        ended = Run.model_validate_json(answered.reply.body)
    if ended.status != "completed":
        raise RunError(ended)
    return ended.output


def submit(
    workflow: Any, input: Any, session_id: str | None, user_id: str | None, idempotency_key: str | None, patience: float
) -> Operation[str]:
    call = start_call("submit", workflow, input, session_id, user_id, idempotency_key)
    answered = yield from ask(call, patience)
    return Submitted.model_validate_json(answered.reply.body).run_id


def wait(run_id: str, timeout: float | None, patience: float, told: float | None = None) -> Operation[Run]:
    """The run once it has ended or is paused. `told`: the time-out to name in the error."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        poll = LONG_POLL if left is None else min(LONG_POLL, left)
        call = Call("GET", run_path(run_id), {"timeout": f"{poll:.3f}"}, wait=poll, answer=_answer(left))
        answered = yield from ask(call, _patience(patience, left))
        found = Run.model_validate_json(answered.reply.body)
        if found.ended or found.status == "paused":
            return found
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeoutError(found, told if told is not None else timeout or 0.0)


def _patience(patience: float, left: float | None) -> float:
    """Nobody who waits for `left` seconds wants to be told much later that there is no answer; but of a run that was
    started, it is worth asking once or twice."""
    return patience if left is None else min(patience, left + _LAST_ASKED)


def _answer(left: float | None) -> float:
    """Nor does one who waits for that long want to learn much later that a processor that hangs has not answered."""
    return ANSWER_SECONDS if left is None else _SHORT_ANSWER


# ------------------------------------------------------------------ commands


def answer(run_id: str, response: Any, entry: str | None, user_id: str | None, patience: float) -> Operation[Status]:
    if entry is None:
        entry = yield from only_question(run_id, patience)
    body = {"user_response": response} | ({} if entry is None else {"entry": entry})
    headers = {"content-type": "application/json"} | ({} if user_id is None else {"x-user-id": user_id})
    call = Call("POST", f"/v1/workflows/resume/{quote(run_id, safe='')}", {}, headers, encode(body))
    try:
        answered = yield from ask(call, patience)
    except ConflictError as error:
        # Ours, if an attempt whose answer was lost gave it.
        given: Any = (error.problem.model_extra or {}).get("answer")
        if not hasattr(error, "__notes__") or not given or from_json(encode(response)) != given["response"]:
            raise
        return (yield from status(run_id, patience))
    return Status.model_validate_json(answered.reply.body)


def only_question(run_id: str, patience: float) -> Operation[str | None]:
    """The entry of the run's question, if it asks one: an answer that is sent again must not answer the next one."""
    try:
        found = yield from get(run_path(run_id), Run, patience)
    except NotAllowedError:
        return None  # a key that may only answer
    asked = [one.entry for one in found.waiting_on if one.kind == "user"]
    return asked[0] if len(asked) == 1 else None


def signal(run_id: str, name: str, payload: Any, signal_id: str | None, patience: float) -> Operation[Status]:
    body = encode({"payload": payload, "id": signal_id or uuid.uuid4().hex})
    # `.` and `..` would be taken for directories on the way.
    path = f"{run_path(run_id)}/signals/{quote(name, safe='') if name.strip('.') else name.replace('.', '%2E')}"
    answered = yield from ask(Call("POST", path, {}, {"content-type": "application/json"}, body), patience)
    return Status.model_validate_json(answered.reply.body)


def command(run_id: str, verb: str, query: dict[str, str], patience: float) -> Operation[Status]:
    """Cancel or retry. With a key of its own, so that a retry that is sent again does not try a second time."""
    headers = {"idempotency-key": uuid.uuid4().hex}
    try:
        answered = yield from ask(Call("POST", f"{run_path(run_id)}/{verb}", query, headers), patience)
    except ConflictError as error:
        if not hasattr(error, "__notes__"):
            raise
        return (yield from status(run_id, patience))
    return Status.model_validate_json(answered.reply.body)


def publish(topic: str, value: Any, key: str | None, event_id: str | None, patience: float) -> Operation[Published]:
    body = {"event_name": topic, "payload": value, "event_id": event_id or uuid.uuid4().hex}
    if key is not None:
        body["key"] = key
    call = Call("POST", "/v1/events", {}, {"content-type": "application/json"}, encode(body))
    answered = yield from ask(call, patience)
    return Published.model_validate_json(answered.reply.body)


# ------------------------------------------------------------------ reading


def run_path(run_id: str) -> str:
    return f"/v1/runs/{quote(run_id, safe='')}"


def get(path: str, shape: type[Shaped], patience: float, **query: str | int | None) -> Operation[Shaped]:
    """Read one shape."""
    given = {name: str(value) for name, value in query.items() if value is not None}
    answered = yield from ask(Call("GET", path, given), patience)
    return shape.model_validate_json(answered.reply.body)


def post(path: str, shape: type[Shaped], patience: float) -> Operation[Shaped]:
    """A command without a body."""
    answered = yield from ask(Call("POST", path), patience)
    return shape.model_validate_json(answered.reply.body)


def status(run_id: str, patience: float) -> Operation[Status]:
    return (yield from get(f"/v1/status/{quote(run_id, safe='')}", Status, patience))


def state(run_id: str, patience: float) -> Operation[dict[str, Any]]:
    answered = yield from ask(Call("GET", f"{run_path(run_id)}/state"), patience)
    found: dict[str, Any] = from_json(answered.reply.body)
    return found


def replay_history(run_id: str, patience: float) -> Operation[History]:
    from agnt5.replay.history import History  # the replay core, which only this needs

    answered = yield from ask(Call("GET", f"{run_path(run_id)}/history"), patience)
    return History.from_json(answered.reply.body)


def letter_path(letter_id: str) -> str:
    return f"/v1/dead-letters/{quote(letter_id, safe='')}"

"""A run that a test has started and talks to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agnt5.client.models import Run
from agnt5.codec import decode_plain, encode_plain
from agnt5.replay.history import History
from agnt5.replay.protocol import Cancelled, Resolved, UserAsk
from agnt5.replay.questions import check_answer
from agnt5.testing.failures import run_error

if TYPE_CHECKING:
    from agnt5.testing.environment import TestEnvironment
    from agnt5.testing.run import TestRun


@dataclass(frozen=True, slots=True)
class Question:
    """A question that a run has asked and nobody has answered."""

    run_id: str
    entry: str
    question: str
    input_type: str
    options: list[dict[str, Any]]
    allow_custom: bool
    skippable: bool


class RunHandle:
    """One run of a `TestEnvironment`."""

    def __init__(self, env: TestEnvironment, run: TestRun) -> None:
        self._env = env
        self._run = run

    @property
    def run_id(self) -> str:
        return self._run.info.run_id

    @property
    def status(self) -> str:
        """running, completed, failed, cancelled, timeout; awaiting_user_input while a question is open."""
        if self._run.status == "running" and self.questions:
            return "awaiting_user_input"
        return self._run.status

    @property
    def run(self) -> Run:
        """As the HTTP interface would show it."""
        return self._run.as_model()

    @property
    def questions(self) -> list[Question]:
        """What it asks and nobody has answered, oldest first."""
        return [
            question_of(self.run_id, ask)
            for path, ask in self._run.open.items()
            if isinstance(ask, UserAsk) and not self._env.is_posted(self._run, path)
        ]

    @property
    def progress(self) -> list[tuple[float | None, str | None]]:
        """What it told of its progress."""
        return list(self._run.progress_told)

    @property
    def logs(self) -> list[tuple[str, str, dict[str, Any]]]:
        """What it logged: level, message, fields."""
        return list(self._run.logged)

    @property
    def state(self) -> dict[str, Any]:
        """Its own state (`ctx.state`)."""
        return self._run.run_state()

    async def result(self) -> Any:
        """Its output, as its return annotation has it; time is skipped as needed. Raises RunError when it did not
        complete; that error is also a StepError, or of the exception's original type, where it came from one."""
        run = self._run
        await self._env.until(lambda: run.ended, f"the end of run {self.run_id}")
        if run.output is not None:
            return run.workflow.decode_output(run.output)
        raise run_error(self.run, run.error)

    async def wait(self) -> Run:
        """Until it has ended, however it does."""
        run = self._run
        await self._env.until(lambda: run.ended, f"the end of run {self.run_id}")
        return self.run

    async def question(self) -> Question:
        """The oldest open question; waits (skipping time) until there is one."""
        await self._env.until(lambda: self._run.ended or bool(self.questions), f"a question of run {self.run_id}")
        if not self.questions:
            raise RuntimeError(f"run {self.run_id} is {self._run.status} and has asked nothing more")
        return self.questions[0]

    async def answer(self, answer: Any, entry: str | None = None) -> None:
        """Answer its question (None skips it); waits (skipping time) until there is one. `entry` says which, when
        several are open. Raises InvalidAnswer, a ValueError, for what is not an option."""
        question = await self.question()
        if entry is not None:
            question = next((asked for asked in self.questions if asked.entry == entry), question)
            if question.entry != entry:
                raise ValueError(f"run {self.run_id} has no open question at {entry}")
        elif len(self.questions) > 1:
            open_now = ", ".join(f"{asked.entry} ({asked.question!r})" for asked in self.questions)
            raise ValueError(f"run {self.run_id} asks several things; say entry=... for one of {open_now}")
        ask = self._run.open[question.entry]
        assert isinstance(ask, UserAsk)
        self._env.post(self._run, Resolved(ask.path, check_answer(ask, answer)))
        await self._env.settle()

    async def signal(self, name: str, payload: Any = None) -> None:
        """Send it a signal; one that comes before it is waited for is kept. Raises ValueError when it has too much
        waiting that it has not taken."""
        self._run.signal(name, encode_plain(payload))
        await self._env.settle()

    async def cancel(self) -> None:
        """Ask it to stop: CancelledError in its code."""
        self._env.post(self._run, Cancelled("cancel"))
        await self._env.settle()

    def history(self) -> History:
        """What has happened to it, for `env.replay` and `History.to_json`."""
        return self._run.history()

    def __repr__(self) -> str:
        return f"<RunHandle {self.run_id} of {self._run.workflow.name!r}: {self.status}>"


def question_of(run_id: str, ask: UserAsk) -> Question:
    return Question(
        run_id, ask.path, ask.question, ask.input_type, decode_plain(ask.options), ask.allow_custom, ask.skippable
    )

from __future__ import annotations

import abc
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from agnt5 import Agnt5Error, ChildError, StepError, StepTimeout
from agnt5.errors import MESSAGE_LIMIT, TRACEBACK_LIMIT, child_error, error_info, short_type, step_error
from agnt5.replay.protocol import ErrorInfo


class CardDeclined(Exception):
    def __init__(self, code: int, *, issuer: str) -> None:
        super().__init__(f"declined with {code} by {issuer}")
        self.code = code
        self.issuer = issuer


@dataclass(frozen=True)
class FrozenFailure(Exception):
    reason: str


class Guarded(Exception):
    def __new__(cls, code: int) -> Guarded:
        return super().__new__(cls, code)

    def __init__(self, code: int) -> None: ...


class Claims(Exception):
    """Has what StepError has, as properties."""

    @property
    def message(self) -> str:
        return "mine"

    @property
    def step(self) -> int:
        raise RuntimeError("not set")

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Slotted(Exception):
    __slots__ = ("message", "step")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class Sealed(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("not to be subclassed")


class Abstract(Exception, abc.ABC):
    @abc.abstractmethod
    def why(self) -> str: ...


class Concrete(Abstract):
    def why(self) -> str:
        return "because"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no str")

    __repr__ = __str__


class Outer:
    class Inner(LookupError): ...


def caught(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as raised:
        return raised


@pytest.mark.parametrize(
    "original",
    [
        ValueError("bad"),
        KeyError("k"),
        OSError(2, "gone"),
        TimeoutError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte"),
        json.JSONDecodeError("m", "doc", 0),
        CardDeclined(51, issuer="bank"),
        FrozenFailure("cold"),
        Claims(),
        Slotted(),
        Concrete(),
        Outer.Inner(),
        StepTimeout("slow"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_steps_failure_is_caught_by_the_type_the_function_raised(original: Exception) -> None:
    info = error_info(caught(original), "charge", 3)
    failure: Any = step_error(info)
    assert isinstance(failure, StepError)
    assert isinstance(failure, type(original))
    assert (failure.step, failure.attempts, failure.qualified_type) == ("charge", 3, info.type)
    assert failure.error_type == type(original).__name__, "as `error.type` over HTTP"
    assert failure.message == info.message
    assert "Traceback" in failure.traceback
    assert "charge" in str(failure)
    assert "3 attempts" in str(failure)
    assert failure != step_error(info)
    assert failure in {failure}
    with pytest.raises(type(original)):
        raise failure
    assert isinstance(child_error(info), (ChildError, type(original)))


@pytest.mark.parametrize(
    "name",
    [
        "Guarded",
        "Sealed",
        "Missing",
        "f.<locals>.E",
        "",
        ".",
        "a..b",
        "1x",
        "StopIteration",
        "GeneratorExit",
        "BaseException",
    ],
)
def test_a_type_that_cannot_be_had_again_still_gives_a_step_error_that_tells_all(name: str) -> None:
    qualified = f"{__name__}.{name}" if name in ("Guarded", "Sealed", "Missing") else name
    failure = step_error(ErrorInfo(qualified, "text", "trace", "s", 2))
    assert type(failure) is StepError
    assert (failure.qualified_type, failure.message, failure.traceback) == (qualified, "text", "trace")
    assert failure.error_type == name.rpartition(".")[2]


def test_final_types_and_groups_give_plain_step_errors() -> None:
    class Model(BaseModel):
        x: int

    with pytest.raises(ValidationError) as refused:
        Model(x="no")  # type: ignore[arg-type]
    for error in (refused.value, ExceptionGroup("several", [ValueError()])):
        failure = step_error(error_info(error, "s"))
        assert type(failure) is StepError
        assert failure.error_type == type(error).__name__


def test_an_exception_that_cannot_be_printed_is_still_recorded() -> None:
    info = error_info(caught(Unprintable()), "s")
    assert info.type == f"{__name__}.Unprintable"
    assert "Unprintable" in info.message
    assert "caught" in info.traceback


def test_the_size_of_a_recorded_failure_is_bounded_and_its_frames_are_kept() -> None:
    info = error_info(caught(ValueError("x" * 10_000_000)), "s")
    assert len(info.message) <= MESSAGE_LIMIT
    assert len(info.traceback) <= TRACEBACK_LIMIT
    assert "in caught" in info.traceback


@given(st.text())
def test_any_text_of_an_exception_can_be_kept_as_utf8(text: str) -> None:
    info = error_info(ValueError(text + "\ud800"), "s")
    info.message.encode()
    info.traceback.encode()


def test_a_step_error_that_ends_a_run_keeps_naming_the_original() -> None:
    failure = step_error(ErrorInfo("ValueError", "bad", "the step's traceback", "charge", 3))
    info = error_info(caught(failure))
    assert info == ErrorInfo("ValueError", "bad", "the step's traceback", "charge", 3)
    assert isinstance(child_error(info), ValueError)


def test_types_are_named_so_that_they_can_be_imported_again() -> None:
    assert error_info(ValueError()).type == "ValueError"
    assert error_info(Outer.Inner()).type == f"{__name__}.Outer.Inner"
    assert short_type("shop.errors.CardDeclined") == "CardDeclined"


def test_every_error_is_an_agnt5_error() -> None:
    import agnt5

    for name in agnt5.__all__:
        if name.endswith(("Error", "Timeout")):
            assert issubclass(getattr(agnt5, name), Agnt5Error)

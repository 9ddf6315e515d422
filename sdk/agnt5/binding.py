"""From an input object to a workflow's arguments: by name, validated and coerced by the annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Required, Unpack, cast, get_args, get_origin

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import from_json
from typing_extensions import TypedDict

from agnt5.codec import CONFIG, PLAIN, Codec, adapter, encode_plain
from agnt5.errors import DefinitionError, EncodeError, InputError
from agnt5.signature import EMPTY, Declaration
from agnt5.types import Envelope

if TYPE_CHECKING:
    from agnt5.workflow import Workflow

MAX_DEPTH = 100
"""How deep an input may be nested: it is kept inside documents of ours, and the parser has a limit for the whole."""


def check_input(workflow: Workflow[Any], payload: bytes, strict: bool, envelope: bytes | None = None) -> bytes:
    """The input as it is kept: `payload`'s known fields, as they were given, as JSON. Raises InputError.

    `strict` (HTTP): unknown fields and repeated keys are errors; else they are ignored. With an `envelope` the
    parameter named `event` is bound from it, and a payload that is no object binds nothing."""
    binder = workflow.binder
    given = parse_object(payload, strict, binder.target, lenient=envelope is not None and binder.takes_event)
    kept = _encode(given if strict else binder.known(given), binder.target)
    binder.bind(kept, strict=strict, envelope=envelope)
    return kept


def parse_object(payload: bytes, strict: bool, target: str | None = None, *, lenient: bool = False) -> dict[str, Any]:
    """A JSON object out of untrusted bytes. Raises InputError. `lenient`: whatever is not one counts as empty."""
    too_deep = f"is nested more than {MAX_DEPTH} deep"
    try:
        given = from_json(payload)  # NaN and Infinity are refused below, where the field is known
    except ValueError as error:
        if lenient:
            return {}
        if "recursion limit" in str(error):
            raise InputError(too_deep, target) from None
        raise InputError(f"is not JSON: {error}" if payload else "is empty; send a JSON object", target) from None
    if payload.count(b"[") + payload.count(b"{") > MAX_DEPTH and _deeper(given, MAX_DEPTH):
        raise InputError(too_deep, target)
    if not isinstance(given, dict):
        if lenient:
            return {}
        raise InputError(f"must be a JSON object with a field for each parameter, not {_kind(given)}", target)
    if strict and payload.count(b":") > len(given):  # else there are not enough for a key that is given twice
        json.loads(payload, object_pairs_hook=_Unique(target).pairs)
    return given


def _encode(given: dict[str, Any], target: str) -> bytes:
    """Raises InputError for each field that JSON cannot hold: NaN, Infinity, a number beyond a double's range."""
    try:
        return encode_plain(given)
    except EncodeError as error:
        problems = {}
        for name, value in given.items():
            try:
                encode_plain(value)
            except EncodeError as problem:
                problems[name] = str(problem)
        raise InputError(problems or str(error), target) from None


class Binder:
    """The validators of one workflow's parameters."""

    __slots__ = ("_adapters", "_declaration", "_open", "_passed", "_rest", "names", "takes_event", "target")

    def __init__(self, declaration: Declaration, workflow: str) -> None:
        self.target = f"workflow {workflow!r}"
        self._declaration = declaration
        self._adapters: dict[tuple[str, bool], TypeAdapter[Any]] = {}
        self._rest = next((p.name for p in declaration.parameters if p.kind is p.VAR_KEYWORD), None)
        self._open = self._rest is not None
        self.names = [p.name for p in declaration.parameters if p.kind is not p.VAR_KEYWORD]
        self.takes_event = "event" in self.names
        self._passed: frozenset[str] | None = None

    def bind(self, data: bytes, *, strict: bool, envelope: bytes | None) -> dict[str, Any]:
        """Keyword arguments; parameters that were not given are left to their defaults. Raises InputError."""
        from_envelope = self.takes_event and envelope is not None
        validator = self._adapter("forbid" if strict else "ignore", from_envelope)
        try:
            arguments: dict[str, Any] = validator.validate_json(data, by_alias=True, by_name=True)
        except ValidationError as error:
            raise InputError(self._problems(error), self.target) from None
        if self._rest is not None:
            self._coerce_rest(self._rest, arguments)
        if from_envelope:
            assert envelope is not None
            arguments["event"] = Envelope.from_json(envelope)
        elif self.takes_event and "event" in arguments and self._takes_any_event():
            arguments["event"] = Envelope.from_object(arguments["event"])
        return arguments

    def known(self, given: dict[str, Any]) -> dict[str, Any]:
        """Only the fields that some parameter takes."""
        if self._passed is None:
            self._passed = self._field_names()
        passed = self._passed
        if not passed:
            return given if self._open else {}
        return {name: value for name, value in given.items() if name in passed}

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the input object, with the parameters' defaults."""
        found = self._adapter("forbid", False).json_schema()
        found.pop("title", None)
        properties = found.setdefault("properties", {})
        for parameter in self._declaration.parameters:
            if parameter.default is not EMPTY and parameter.name in properties:
                try:
                    properties[parameter.name]["default"] = from_json(encode_plain(parameter.default))
                except EncodeError:
                    continue
        return found

    def prepare(self) -> None:
        """Build what binding needs. Raises DefinitionError for an annotation that cannot be used."""
        self._adapter("ignore", False)
        if self._rest is not None and get_origin(self._declaration.annotation(self._rest)) is not Unpack:
            self._check(self._rest)

    def _coerce_rest(self, rest: str, arguments: dict[str, Any]) -> None:
        """What `**rest` takes, each by its annotation, which a typed dictionary has no place for."""
        codec = self._rest_codec(rest)
        if codec is PLAIN:
            return
        problems: dict[str, str] = {}
        for name in arguments.keys() - set(self.names):
            try:
                arguments[name] = codec.coerce(arguments[name])
            except ValidationError as error:
                for where, problem in self._problems(error).items():
                    problems[f"{name}.{where}" if where else name] = problem
        if problems:
            raise InputError(problems, self.target)

    def _rest_codec(self, rest: str) -> Codec:
        """Fields of an unpacked TypedDict are taken as they are."""
        unpacked = get_origin(self._declaration.annotation(rest)) is Unpack
        return PLAIN if unpacked else self._declaration.codec(rest)

    def _adapter(self, extra: Literal["forbid", "ignore", "allow"], from_envelope: bool) -> TypeAdapter[Any]:
        if self._open:
            extra = "allow"
        key = (extra, from_envelope)
        found = self._adapters.get(key)
        if found is None:
            shape = self._shape(extra, from_envelope)
            try:
                found = TypeAdapter(shape)
            except PydanticUserError:
                for name in self.names:
                    self._check(name)
                raise
            self._adapters[key] = found
        return found

    def _shape(self, extra: Literal["forbid", "ignore", "allow"], from_envelope: bool) -> Any:
        """The parameters as a typed dictionary."""
        fields: dict[str, Any] = {}
        for parameter in self._declaration.parameters:
            if parameter.kind is parameter.VAR_KEYWORD or (from_envelope and parameter.name == "event"):
                continue
            annotation = self._annotation(parameter.name)
            fields[parameter.name] = Required[annotation] if parameter.default is EMPTY else NotRequired[annotation]
        shape: Any = cast("Any", TypedDict)("input", fields)
        shape.__pydantic_config__ = {**CONFIG, "extra": extra}
        return shape

    def _annotation(self, name: str) -> Any:
        annotation = self._declaration.annotation(name)
        return Any if name == "event" and annotation is Envelope else annotation

    def _check(self, name: str) -> None:
        """Raises DefinitionError that names the parameter when its annotation is what cannot be used."""
        try:
            adapter(self._annotation(name))
        except DefinitionError as error:
            raise DefinitionError(f"{self._declaration.place}: parameter {name!r} of {self.target}: {error}") from None

    def _takes_any_event(self) -> bool:
        return self._declaration.annotation("event") in (Any, object, Envelope)

    def _field_names(self) -> frozenset[str]:
        """The parameters' names and aliases; empty when any field may be one."""
        if self._open:
            return frozenset()
        names: set[str] = set(self.names)
        for name in self.names:
            annotation = self._declaration.annotation(name)
            for item in get_args(annotation)[1:] if get_origin(annotation) is Annotated else ():
                for alias in (item.alias, item.validation_alias) if isinstance(item, FieldInfo) else ():
                    if isinstance(alias, str):
                        names.add(alias)
                    elif alias is not None:  # a path or a choice of several
                        self._open = True
                        return frozenset()
        return frozenset(names)

    def _problems(self, error: ValidationError) -> dict[str, str]:
        problems: dict[str, str] = {}
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:100]:
            where = ".".join(map(str, item["loc"]))
            if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
                takes = f"it takes {', '.join(self.names)}" if self.names else "it takes no input"
                problems.setdefault(where, f"is no parameter of this workflow; {takes}")
            else:
                problems.setdefault(where, item["msg"])
        return problems


class _Unique:
    """Refuses an object that has a key twice: what reads it next may take the other one."""

    __slots__ = ("target",)

    def __init__(self, target: str | None) -> None:
        self.target = target

    def pairs(self, pairs: list[tuple[str, Any]]) -> None:
        if len(pairs) > 1:
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    raise InputError({name: "is given twice in one object"}, self.target)
                seen.add(name)


def _deeper(value: Any, left: int) -> bool:
    if isinstance(value, Mapping):
        return left == 0 or any(_deeper(member, left - 1) for member in value.values())
    if isinstance(value, list):
        return left == 0 or any(_deeper(member, left - 1) for member in value)
    return False


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case list():
            return "an array"
        case str():
            return "text"
        case _:
            return "a number"

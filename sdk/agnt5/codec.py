"""Values to JSON and back, by annotation: what a step returned live is what replay returns.

A codec is built once per annotation and used for every call, so the common annotations (`dict`, `str`, none at all)
have codecs that go straight to pydantic-core, and only the others carry a pydantic TypeAdapter.

JSON has no NaN or Infinity, so these are refused; a value that JSON would quietly turn into another (a generator into a
list, which can be read only once) is refused as well, naming its type and where it sits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from types import NoneType
from typing import Annotated, Any, Protocol, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticUserError,
    Secret,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import PydanticSerializationError, from_json, to_json
from typing_extensions import TypeAliasType, is_typeddict

from agnt5.errors import DefinitionError, EncodeError, type_name

CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants", allow_inf_nan=False)
"""How values are written where no model of the user's says otherwise."""


class Codec(Protocol):
    """One annotation's way to JSON and back."""

    def encode(self, value: Any) -> bytes:
        """JSON that `decode` takes. Raises EncodeError, naming the type, for a value that would not survive."""
        ...

    def decode(self, data: bytes) -> Any:
        """The value, coerced by the annotation. Raises ValueError (pydantic's ValidationError) when it does not fit."""
        ...

    def coerce(self, value: Any) -> Any:
        """As `decode`, of JSON that has been parsed already."""
        ...


def encode_plain(value: Any) -> bytes:
    """JSON of a value that no annotation describes: models, dataclasses, dates and the like become what JSON has.

    Raises EncodeError for NaN, Infinity, generators, and whatever JSON cannot hold."""
    try:
        data = to_json(value, by_alias=False, round_trip=True, inf_nan_mode="constants", bytes_mode="base64")
        if from_json(data, allow_inf_nan=False) == value:
            return data
    except Exception:  # also of the value's own __eq__; the careful way tells what is wrong with it
        pass
    plain = _plain(value, "", 0)
    try:
        data = to_json(plain, by_alias=False, round_trip=True, inf_nan_mode="constants", bytes_mode="base64")
        written = from_json(data, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise EncodeError(f"a value of type {type_name(type(value))} cannot be kept as JSON: {error}") from None
    _refuse_masked(value, data)
    ordered = _sets_sorted(plain, written)
    return data if ordered == written else to_json(ordered)


def decode_plain(data: bytes) -> Any:
    """The JSON value of `data`. Raises ValueError."""
    return from_json(data, allow_inf_nan=False)


def check_text(text: str, what: str) -> str:
    """`text`, unless it holds a lone surrogate, which UTF-8 has no bytes for: EncodeError."""
    if not text.isascii():
        try:
            str.encode(text, "utf-8")
        except UnicodeEncodeError:
            raise EncodeError(f"{what} holds a lone surrogate, which JSON cannot keep: {text[:100]!a}") from None
    return text


class PlainCodec:
    """Any JSON value: no annotation, `Any`, `object`."""

    __slots__ = ()

    def encode(self, value: Any) -> bytes:
        return encode_plain(value)

    def decode(self, data: bytes) -> Any:
        return from_json(data, allow_inf_nan=False)

    def coerce(self, value: Any) -> Any:
        return value


class ExactCodec:
    """A JSON type with nothing to coerce inside: `dict`, `list`, `str`, `int`, `float`, `bool`, `None`."""

    __slots__ = ("_adapter", "_type")

    def __init__(self, cls: type) -> None:
        self._type = cls
        self._adapter = AdapterCodec(cls)

    def encode(self, value: Any) -> bytes:
        data = encode_plain(value)
        if type(value) is not self._type and type(from_json(data)) is not self._type:
            return self._adapter.encode(value)
        return data

    def decode(self, data: bytes) -> Any:
        value = from_json(data, allow_inf_nan=False)
        return value if type(value) is self._type else self._adapter.decode(data)

    def coerce(self, value: Any) -> Any:
        return value if type(value) is self._type else self._adapter.coerce(value)


class AdapterCodec:
    """Every other annotation, through pydantic."""

    __slots__ = ("_adapter", "_annotation")

    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation
        self._adapter = adapter(annotation)

    def encode(self, value: Any) -> bytes:
        _refuse_one_shot(value, "")
        try:
            try:
                # By field name, without computed fields: what `decode` needs to make an equal object.
                data = self._adapter.dump_json(value, round_trip=True, warnings="error")
            except PydanticSerializationError:
                # Not yet what the annotation says ("5" for an int, a dict for a model): coerced as decoding would.
                value = self._adapter.validate_python(value, by_alias=True, by_name=True)
                data = self._adapter.dump_json(value, round_trip=True, warnings="error")
            self._adapter.validate_json(data, by_alias=True, by_name=True)
        except Exception as error:
            _plain(value, "", 0)
            wanted = describe(self._annotation)
            raise EncodeError(
                f"a value of type {type_name(type(value))} cannot be kept as {wanted}: {explain(error)}"
            ) from None
        _refuse_masked(value, data)
        if b"null" in data:
            _plain(value, "", 0)  # a model writes NaN as null unless told otherwise
        return data

    def decode(self, data: bytes) -> Any:
        return self._adapter.validate_json(data, by_alias=True, by_name=True)

    def coerce(self, value: Any) -> Any:
        # Through bytes: pydantic reads JSON's text as bytes, dates and tuples, Python's str it does not.
        return self._adapter.validate_json(to_json(value), by_alias=True, by_name=True)


def codec_for(annotation: Any) -> Codec:
    """The codec of an annotation (built once). Raises DefinitionError for a type that pydantic cannot describe."""
    try:
        return _codec(annotation)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _codec.__wrapped__(annotation)  # Annotated with an unhashable part


@lru_cache(maxsize=4096)
def _codec(annotation: Any) -> Codec:
    if annotation is Any or annotation is object:
        return PLAIN
    if annotation is None:
        annotation = NoneType
    if annotation in _EXACT:
        return ExactCodec(annotation)
    if get_origin(annotation) is dict and annotation.__args__ in ((str, Any), (str, object)):
        return ExactCodec(dict)
    if get_origin(annotation) is list and annotation.__args__ in ((Any,), (object,)):
        return ExactCodec(list)
    return AdapterCodec(annotation)


_EXACT = (dict, list, str, int, float, bool, NoneType)


def adapter(annotation: Any) -> TypeAdapter[Any]:
    """A TypeAdapter that writes bytes as base64 and knows no NaN, unless the type brings its own configuration."""
    bare = annotation
    while get_origin(bare) is Annotated:
        bare = get_args(bare)[0]
    model = isinstance(bare, type) and issubclass(bare, BaseModel)
    if isinstance(bare, type) and (is_dataclass(bare) or is_typeddict(bare)):
        # These take the configuration of what holds them; pydantic refuses one for the bare type.
        annotation = TypeAliasType(bare.__name__, annotation)  # type: ignore[misc]  # a name made at run time
    try:
        return TypeAdapter(annotation, config=None if model else CONFIG)
    except PydanticSchemaGenerationError as error:
        raise DefinitionError(
            f"{describe(annotation)} cannot be kept as JSON; annotate with a pydantic model, a dataclass, "
            f"or types made of str, int, float, bool, None, list and dict ({str(error).splitlines()[0]})"
        ) from None
    except PydanticUserError as error:
        raise DefinitionError(f"{describe(annotation)} cannot be used as an annotation: {error.message}") from None


def describe(annotation: Any) -> str:
    """An annotation as people write it."""
    return (
        type_name(annotation) if isinstance(annotation, type) and get_origin(annotation) is None else repr(annotation)
    )


def explain(error: BaseException) -> str:
    """A validation error in one line, without pydantic's links."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{where}: {item['msg']}" if (where := ".".join(map(str, item["loc"]))) else item["msg"]
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:10]
    )


# ------------------------------------------------------------------ the careful way, for what is not plain JSON

_DEEPEST = 190
"""pydantic-core reads JSON nested up to 200 deep; values are kept inside a few levels of ours."""


def _refuse_one_shot(value: Any, where: str) -> None:
    """An iterator's items, an awaitable's result are not the value: replay would return something else."""
    if isinstance(value, (Iterator, AsyncIterator, Awaitable)):
        raise EncodeError(
            f"a value of type {type_name(type(value))}{_at(where)} does not survive being kept as JSON; "
            "return what it yields (list(...)) instead"
        )


def _refuse_masked(value: Any, data: bytes) -> None:
    """pydantic writes a secret as asterisks, unless its field has a serializer that writes it out."""
    if b'"**********"' in data and (secret := _secret(value)) is not None:
        raise EncodeError(
            f"a value of type {type_name(type(secret))} does not survive being kept as JSON: pydantic writes asterisks "
            "in its place. Let the function that needs it get it where it is kept, or give its field a serializer"
        )


def _secret(value: Any) -> Any:
    """The first secret in a value, or None."""
    if isinstance(value, (SecretStr, SecretBytes, Secret)):
        return value
    members: Iterable[Any] = ()
    if isinstance(value, Mapping):
        members = value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        members = value
    elif isinstance(value, BaseModel):
        members = (member for _, member in value)
    elif is_dataclass(value):
        members = (getattr(value, field.name, None) for field in fields(value))
    return next((found for member in members if (found := _secret(member)) is not None), None)


def _plain(value: Any, where: str, depth: int) -> Any:
    """`value` with containers made plain and sets in a stable order; raises EncodeError for what JSON cannot hold."""
    if value is None or isinstance(value, (bool, int, bytes, bytearray)):
        return value
    if isinstance(value, str):
        return check_text(value, f"text{_at(where)}")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise EncodeError(f"the number {value}{_at(where)} cannot be kept: JSON has no NaN or Infinity")
        return value
    if depth > _DEEPEST:
        raise EncodeError(f"a value is nested more than {_DEEPEST} deep{_at(where[:60])}, or contains itself")
    _refuse_one_shot(value, where)
    if isinstance(value, Mapping):
        entries: dict[str, Any] = {}
        for key, member in value.items():
            name = key if type(key) is str else _key(key, where)
            if name in entries:
                raise EncodeError(f"two keys{_at(where)} are both {name!r} in JSON, where every key is text")
            entries[name] = _plain(member, f"{where}.{name}", depth + 1)
        return entries
    if isinstance(value, (set, frozenset)):
        members = [_plain(member, f"{where}[]", depth + 1) for member in value]
        return sorted(members, key=lambda member: to_json(member, bytes_mode="base64"))
    if isinstance(value, (list, tuple, deque)):
        return [_plain(member, f"{where}[{i}]", depth + 1) for i, member in enumerate(value)]
    if isinstance(value, BaseModel):
        for name, member in value:
            _plain(member, f"{where}.{name}", depth + 1)
        return value
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            _plain(getattr(value, field.name, None), f"{where}.{field.name}", depth + 1)
        return value
    try:
        to_json(value, bytes_mode="base64")
    except (PydanticSerializationError, ValueError, RecursionError):
        raise EncodeError(f"a value of type {type_name(type(value))}{_at(where)} cannot be kept as JSON") from None
    return value


def _sets_sorted(value: Any, written: Any) -> Any:
    """`written`, the JSON of `value`, with the sets in models and dataclasses in a stable order too: what a step is
    asked with says whether it has been done already, and strings hash differently in every process."""
    if isinstance(written, list) and isinstance(value, (set, frozenset, list, tuple, deque)):
        if len(value) != len(written):
            return written
        members = list(map(_sets_sorted, value, written))
        return sorted(members, key=to_json) if isinstance(value, (set, frozenset)) else members
    if not isinstance(written, dict):
        return written
    if isinstance(value, Mapping):
        named: dict[str, Any] = dict(zip(written, value.values(), strict=False)) if len(value) == len(written) else {}
    elif isinstance(value, BaseModel):
        named = dict(value)
    elif is_dataclass(value):
        named = {field.name: getattr(value, field.name, None) for field in fields(value)}
    else:
        return written
    return {name: _sets_sorted(named.get(name), member) for name, member in written.items()}


def _key(key: Any, where: str) -> str:
    if isinstance(key, float) and not math.isfinite(key):
        raise EncodeError(f"the key {key}{_at(where)} cannot be kept: JSON has no NaN or Infinity")
    try:
        (name,) = from_json(to_json({key: None}, bytes_mode="base64"))
    except ValueError:
        raise EncodeError(f"a key of type {type_name(type(key))}{_at(where)} cannot be kept as JSON") from None
    return str(name)


def _at(where: str) -> str:
    return f" at {where.lstrip('.')}" if where else ""


PLAIN = PlainCodec()

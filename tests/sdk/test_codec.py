from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretBytes, SecretStr, computed_field, field_serializer
from typing_extensions import TypedDict

from agnt5 import DefinitionError, EncodeError
from agnt5.codec import codec_for, decode_plain, encode_plain


class Colour(Enum):
    RED = "red"
    NUMBER = 7


class Level(IntEnum):
    LOW = 1


class Item(BaseModel):
    sku: str
    quantity: int = Field(default=1, alias="qty")
    price: Decimal = Decimal(0)
    note: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def label(self) -> str:
        return f"{self.quantity} x {self.sku}"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    n: int
    weight: float | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.n


@dataclass
class Parcel:
    items: list[Item]
    colour: Colour = Colour.RED
    raw: bytes = b""
    tags: frozenset[str] = frozenset()
    nested: Parcel | None = None
    sizes: tuple[int, ...] = field(default=())


class Point(NamedTuple):
    x: int
    y: int


class Movie(TypedDict):
    title: str
    poster: bytes


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
items = st.builds(lambda sku, qty, note: Item(sku=sku, qty=qty, note=note), texts, st.integers(), st.none() | texts)
parcels = st.builds(
    Parcel,
    st.lists(items, max_size=2),
    st.sampled_from(Colour),
    st.binary(),
    st.frozensets(texts, max_size=3),
    st.none() | st.builds(Parcel, st.just([])),
    st.lists(st.integers()).map(tuple),
)
utc_times = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC))


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


@given(plain)
def test_plain_json_comes_back_equal(value: Any) -> None:
    for annotation in (Any, object):
        codec = codec_for(annotation)
        assert same(codec.decode(codec.encode(value)), value)
    assert encode_plain(decode_plain(encode_plain(value))) == encode_plain(value)


@pytest.mark.parametrize(
    ("annotation", "values"),
    [
        (dict, st.dictionaries(texts, plain)),
        (dict[str, Any], st.dictionaries(texts, plain)),
        (list, st.lists(plain)),
        (list[Any], st.lists(plain)),
        (str, texts),
        (int, st.integers(-(10**40), 10**40)),
        (float, st.floats(allow_nan=False, allow_infinity=False)),
        (bool, st.booleans()),
        (None, st.none()),
        (bytes, st.binary()),
        (int | str, st.integers() | texts),
        (str | None, st.none() | texts),
        (tuple[int, str], st.tuples(st.integers(), texts)),
        (set[int], st.sets(st.integers())),
        (frozenset[bytes], st.frozensets(st.binary())),
        (dict[int, list[Colour]], st.dictionaries(st.integers(), st.lists(st.sampled_from(Colour), max_size=3))),
        (Colour, st.sampled_from(Colour)),
        (Level, st.just(Level.LOW)),
        (Literal["a", 3], st.sampled_from(["a", 3])),
        (datetime, utc_times),
        (date, st.dates()),
        (time, st.times()),
        (timedelta, st.timedeltas(min_value=timedelta(days=-(10**6)), max_value=timedelta(days=10**6))),
        (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
        (UUID, st.uuids()),
        (Item, items),
        (list[Item] | None, st.none() | st.lists(items, max_size=3)),
        (Parcel, parcels),
        (Annotated[Parcel, "noted"], parcels),
        (dict[str, Parcel], st.dictionaries(texts, parcels, max_size=2)),
        (Point, st.builds(Point, st.integers(), st.integers())),
        (Movie, st.fixed_dictionaries({"title": texts, "poster": st.binary()})),
        (
            Strict,
            st.builds(Strict, n=st.integers(), weight=st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        ),
    ],
    ids=lambda given: "" if isinstance(given, st.SearchStrategy) else str(given),
)
def test_values_come_back_equal_by_their_annotation(annotation: Any, values: st.SearchStrategy[Any]) -> None:
    codec = codec_for(annotation)

    @given(values)
    def check(value: Any) -> None:
        data = codec.encode(value)
        back = codec.decode(data)
        assert same(back, value)
        # Arguments are written without their annotation and read with it.
        assert same(codec.decode(encode_plain(value)), value)
        assert same(codec.coerce(decode_plain(data)), value)

    check()


@given(plain, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_nan_and_infinity_are_refused_wherever_they_are(value: Any, bad: float) -> None:
    for holder in (bad, [value, bad], {"a": {"b": bad}}, (bad,), Strict.model_construct(n=1, weight=bad)):
        with pytest.raises(EncodeError, match="NaN or Infinity"):
            encode_plain(holder)
    with pytest.raises(EncodeError, match="NaN or Infinity"):
        codec_for(dict).encode({"a": bad})
    with pytest.raises(EncodeError, match="NaN or Infinity"):
        codec_for(float | None).encode(bad)
    with pytest.raises(EncodeError, match="NaN or Infinity"):
        codec_for(Strict).encode(Strict.model_construct(n=1, weight=bad))


@pytest.mark.parametrize("annotation", [Any, dict, list, list[int], str, Item, Parcel, int | None], ids=str)
def test_what_does_not_survive_is_refused_naming_its_type(annotation: Any) -> None:
    codec = codec_for(annotation)
    coroutine = _coroutine()
    for value, name in [
        ((n for n in [1]), "generator"),
        (threading.Lock(), "lock"),
        (coroutine, "coroutine"),
        (iter([1]), "list_iterator"),
        (map(str, [1]), "map"),
        (print, "builtin_function_or_method"),
    ]:
        with pytest.raises(EncodeError, match=name):
            codec.encode(value)
    coroutine.close()


async def _coroutine() -> None: ...


def test_a_nested_culprit_is_named_with_its_place() -> None:
    with pytest.raises(EncodeError, match=r"generator at a\.b\[1\]"):
        encode_plain({"a": {"b": [1, (n for n in [1])]}})
    with pytest.raises(EncodeError, match=r"lock at rows\[0\]"):
        codec_for(dict).encode({"rows": (threading.Lock(),)})
    with pytest.raises(EncodeError, match="lone surrogate"):
        encode_plain(["\ud800"])
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(EncodeError, match="contains itself"):
        encode_plain(loop)


class Login(BaseModel):
    user: str
    token: SecretStr


class Told(Login):
    @field_serializer("token")
    def tell(self, token: SecretStr) -> str:
        return token.get_secret_value()


@pytest.mark.parametrize(
    "value", [SecretStr("s"), SecretBytes(b"s"), Login(user="a", token=SecretStr("s")), [{"a": (SecretStr("s"),)}]]
)
def test_a_secret_is_refused_and_not_kept_as_asterisks(value: Any) -> None:
    for codec in (codec_for(Any), codec_for(type(value))):
        with pytest.raises(EncodeError, match=r"Secret(Str|Bytes)"):
            codec.encode(value)


def test_a_secret_that_its_model_tells_is_kept_and_so_are_asterisks() -> None:
    told = Told(user="a", token=SecretStr("s"))
    for data in (encode_plain(told), codec_for(Told).encode(told), encode_plain({"args": [told]})[9:-2]):
        assert codec_for(Told).decode(data) == told
    assert decode_plain(encode_plain(["*" * 10, date(2026, 1, 1)])) == ["*" * 10, "2026-01-01"]


def test_keys_that_json_makes_equal_are_refused() -> None:
    with pytest.raises(EncodeError, match="two keys"):
        encode_plain({1: "a", "1": "b"})
    assert decode_plain(encode_plain({1: "a", "2": "b"})) == {"1": "a", "2": "b"}


def test_a_set_is_written_in_an_order_that_hashing_does_not_change() -> None:
    assert encode_plain({"s": {"b", "a", "c"}}) == b'{"s":["a","b","c"]}'


class Labels(BaseModel):
    names: set[str]
    by_number: dict[int, list[frozenset[str]]]


@dataclass
class Labelled:
    names: set[str]
    inside: Labels


def test_a_set_in_a_model_or_a_dataclass_is_written_in_a_stable_order() -> None:
    many = [chr(ord("a") + i) for i in range(26)]
    given = Labelled(set(many), Labels(names=set(many), by_number={1: [frozenset(many)], 2: []}))
    written = {"names": many, "inside": {"names": many, "by_number": {"1": [many], "2": []}}}
    assert decode_plain(encode_plain({"args": [given, given.inside]})) == {"args": [written, written["inside"]]}
    assert codec_for(Labelled).decode(encode_plain(given)) == given


@pytest.mark.parametrize(
    ("annotation", "returned", "got"),
    [
        (int, "5", 5),
        (float, 3, 3.0),
        (Item, {"sku": "a", "qty": 2}, Item(sku="a", qty=2)),
        (list[Item], ({"sku": "a"},), [Item(sku="a")]),
        (datetime, "2026-01-01T00:00:00Z", datetime(2026, 1, 1, tzinfo=UTC)),
        (dict, OrderedDict(a=1), {"a": 1}),
        (dict, Item(sku="a"), {"sku": "a", "quantity": 1, "price": "0", "note": None}),
        (str, Path("/a"), "/a"),
    ],
    ids=str,
)
def test_a_result_is_what_its_annotation_says_from_the_first_time(annotation: Any, returned: Any, got: Any) -> None:
    codec = codec_for(annotation)
    data = codec.encode(returned)
    assert same(codec.decode(data), got)
    assert codec.encode(got) == data


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(dict, None), (str, 3), (int, "x"), (list[int], ["a"]), (Item, {"qty": 1}), (None, 1), (bool, "perhaps")],
    ids=str,
)
def test_a_result_that_does_not_fit_its_annotation_is_refused(annotation: Any, value: Any) -> None:
    with pytest.raises(EncodeError, match=type(value).__name__):
        codec_for(annotation).encode(value)


def test_an_annotation_that_json_cannot_carry_is_refused_by_name() -> None:
    class Socket: ...

    with pytest.raises(DefinitionError, match="Socket"):
        codec_for(Socket)


@given(st.integers(191, 400))
def test_values_nested_too_deep_are_refused(depth: int) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    assume(depth > 200)
    with pytest.raises(EncodeError, match="nested"):
        encode_plain(value)


class Discounted(Item):
    percent: int


def test_an_instance_of_a_subclass_is_kept_as_the_annotation_says_and_a_union_keeps_the_fields_of_each_class() -> None:
    bargain = Discounted(sku="a", percent=5)
    item = codec_for(Item)
    assert item.decode(item.encode(bargain)) == Item(sku="a")
    either = codec_for(Discounted | Item)
    for value in (bargain, Item(sku="a")):
        assert either.decode(either.encode(value)) == value

"""Which values a field takes: read by its type, refused by its bound, described by both."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, Literal

from unfused_fast.errors import UserError


@dataclass(frozen=True)
class Bound:
    """Stands beside the type of a field, in `Annotated`."""

    words: str
    """What follows the type: `want a number, greater than 0`."""
    holds: Callable[[Any], bool]
    """Of each number in a value; words, such as auto, are not asked."""


ABOVE_0 = Bound("greater than 0", lambda number: number > 0)
AT_LEAST_0 = Bound("at least 0", lambda number: number >= 0)
AT_LEAST_1 = Bound("at least 1", lambda number: number >= 1)

LARGEST = 2**31
"""Of whole numbers. Ours: no setting needs more, and sizes computed from larger ones overflow."""

Auto = Literal["auto"]
Count = Annotated[int, AT_LEAST_1]
CountOrZero = Annotated[int, AT_LEAST_0]
Positive = Annotated[float, ABOVE_0]
PositiveOrZero = Annotated[float, AT_LEAST_0]
Share = Annotated[float, Bound("from 0 to 1", lambda number: 0 <= number <= 1)]
ShareBelow1 = Annotated[float, Bound("at least 0 and below 1", lambda number: 0 <= number < 1)]
ShareAbove0 = Annotated[float, Bound("greater than 0 and at most 1", lambda number: 0 < number <= 1)]
ShareBetween = Annotated[float, Bound("greater than 0 and below 1", lambda number: 0 < number < 1)]

_WRONG = TypeError, ValueError, OverflowError, LookupError


def parse(value: Any, kind: Any, name: str) -> Any:
    """The value of field `name`, from text or JSON. Raises UserError for one that its type or bound does not allow."""
    wanted, bound = _type_and_bound(kind)
    shown = text if len(text := str(value)) <= 80 else f"{text[:77]}..."
    with suppress(*_WRONG):
        parsed = _of_type(value, wanted)
        numbers = [part for part in (parsed if isinstance(parsed, tuple) else (parsed,)) if not isinstance(part, str)]
        if any(isinstance(number, int) and abs(number) >= LARGEST for number in numbers):
            raise UserError(f"{name} = {shown}: want whole numbers below {LARGEST}")
        if bound is None or all(map(bound.holds, numbers)):
            return parsed
    choices = [choice for choice in typing.get_args(wanted) if isinstance(choice, str)]
    near = difflib.get_close_matches(str(value), choices, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"{name} = {shown}: want {describe_type(kind)}{meant}")


def chosen_names(flag: str, names: str, known: Collection[str], example: str) -> list[str]:
    """Names between commas of a flag such as `--tasks`. Raises UserError for an empty or an unknown one."""
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if not name:
            raise UserError(f"{flag} {names!r}: a name between the commas is empty; want names such as {example}")
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, 1)
            meant = f"did you mean {near[0]}? " if near else ""
            what = flag.removeprefix("--").removesuffix("s")
            raise UserError(f"{flag} {name}: no such {what}; {meant}there are: {', '.join(known)}")
    return chosen


def _of_type(value: Any, wanted: Any) -> Any:
    """Raises one of _WRONG for a value that is not of this type, and is no text of one."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            with suppress(*_WRONG):
                return _of_type(value, option)
        raise ValueError
    if origin is Literal:
        return {str(choice): choice for choice in arguments}[str(value)]
    if origin is tuple:
        items = value.strip("()[] ").split(",") if isinstance(value, str) else list(value)
        items = [item for item in items if not (isinstance(item, str) and not item.strip())]
        kinds = arguments[:1] * len(items) if arguments[-1] is Ellipsis else arguments
        return tuple(_of_type(item, kind) for item, kind in zip(items, kinds, strict=True))
    if wanted is bool:
        return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
    if isinstance(value, bool) or (wanted is str and not isinstance(value, str)):  # bool is a kind of int
        raise ValueError
    number = wanted(value)
    if (wanted is int and isinstance(value, float) and number != value) or (wanted is float and not isfinite(number)):
        raise ValueError
    return number


def describe_type(kind: Any) -> str:
    """A field's type and bound in words: `a whole number or auto, at least 1`, `one of larc, sgd, adamw`."""
    wanted, bound = _type_and_bound(kind)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if bound is not None:
        return f"{describe_type(wanted)}, {bound.words}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe_type(option) for option in arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is tuple:
        number = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        kind = {int: "whole numbers", float: "numbers", str: "words"}[arguments[0]]
        return f"{number}{kind} between commas"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[wanted]


def _type_and_bound(kind: Any) -> tuple[Any, Bound | None]:
    return typing.get_args(kind) if typing.get_origin(kind) is Annotated else (kind, None)

"""Which events a sink takes: `filter` mappings and `states` lists, compiled to one fast call.

A filter maps paths into an event to values, and an event passes if **any** of them matches.
Paths are nested sections or flat dotted keys, in any case; a path without a value asks only
that the event has that part. Everything that can be wrong is found when the filter is
compiled: the call itself never raises.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, Union, get_args, get_origin

import msgspec

from nray import UserError
from nray.events.model import STATE_OPEN, STATES, Event

Predicate = Callable[[Event], bool]

# Filters are written by hand; a deeper one is a mistake (or a YAML alias that holds itself).
_DEPTH_MAX: Final = 32

_TRUTHS: Final = {"true": True, "false": False}


class FilterError(UserError):
    """A filter or a list of states that cannot mean anything."""


# ── the paths of the model ──────────────────────────────────────────────────────────────────


@lru_cache(maxsize=1)
def _paths() -> dict[str, tuple[str, type]]:
    """Lower-case path → (path as spelled in the event, its type), for every part of an event."""
    return dict(_walk(Event, ""))


def _walk(struct: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, tuple[str, type]]]:
    for field in msgspec.structs.fields(struct):
        path, kind = prefix + field.encode_name, _plain(field.type)
        yield path.lower(), (path, kind)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from _walk(kind, path + ".")


def _plain(annotation: Any) -> type:
    """The one type of a field: ``int | UnsetType`` is int, ``dict[str, Any]`` is dict."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not msgspec.UnsetType)
    plain: type = get_origin(annotation) or annotation
    return plain


def _nearest(path: str) -> str:
    """The path of an event that `path` was most likely meant to be; "" if none is near."""
    known = _paths()
    wanted = path.lower()
    for candidate, (spelled, _) in known.items():
        if candidate.endswith("." + wanted):  # "portscan.open" for "result.portscan.open"
            return spelled
    near = difflib.get_close_matches(wanted, known, n=1)
    if not near:  # the last part alone: "port.opne" for "result.portscan.open"
        last = {candidate.rpartition(".")[2]: candidate for candidate in reversed(known)}
        near = [last[n] for n in difflib.get_close_matches(wanted.rpartition(".")[2], last, n=1)]
    return known[near[0]][0] if near else ""


# ── compiling ───────────────────────────────────────────────────────────────────────────────


def compile_filter(filter_: Mapping[Any, Any] | None, where: str = "filter") -> Predicate | None:
    """The filter as a call, or None where there is none (or an empty one): all events pass.

    Args:
        filter_: as the user wrote it: nested mappings, dotted keys, or both mixed.
        where: the place of the filter (file and key), for error messages.

    Raises:
        FilterError: for a path that no event has, or a value that its field can never hold.
    """
    if filter_ is not None and not isinstance(filter_, Mapping):
        raise FilterError(
            f"{where}: must map paths into an event to values, not be {_shown(filter_)}",
            "for example: result.port: 25",
        )
    if not filter_:
        return None
    checks: list[Predicate] = []
    fields: dict[str, set[object]] = {}
    for path, value in _leaves(filter_, "", where):
        spelled, kind, inside = _resolve(path, where)
        if value is None:
            checks.append(_has_key(spelled, inside) if inside else _has_part(spelled))
        elif kind is dict and inside:
            wanted = frozenset(_text(v, path, where) for v in _listed(value, path, where))
            checks.append(_key_is(spelled, inside, wanted))
        else:
            typed = (_typed(v, spelled, kind, where) for v in _listed(value, path, where))
            fields.setdefault(spelled, set()).update(typed)
    checks += [_field_is(spelled, frozenset(wanted)) for spelled, wanted in fields.items()]
    return _any_of(tuple(checks))


def compile_states(states: Iterable[str], where: str = "states") -> Predicate:
    """A call that passes open ports always, and ports of the other states that are listed.

    Events without a port's state (registrations, application-layer findings) pass.
    Raises `FilterError` for a state that does not exist.
    """
    wanted = frozenset(states)
    for state in sorted(wanted):
        if state not in STATES:
            raise FilterError(
                f"{where}: there is no state {state!r}", f"states are {', '.join(STATES)}"
            )
    others = wanted - {STATE_OPEN}

    def shown(event: Event) -> bool:
        try:
            scan: Any = event.result.portscan  # type: ignore[union-attr]
            return scan.open or scan.state in others
        except AttributeError:  # no result, or no portscan in it
            return True

    return shown


def _leaves(section: Mapping[Any, Any], prefix: str, where: str) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of each leaf. An empty section is a part without a value."""
    if prefix.count(".") > _DEPTH_MAX:
        raise FilterError(f"{where}: nested too deep at {prefix[:60]}")
    for key, value in section.items():
        name = str(key).strip().strip(".") if key is not None else ""
        if not name:
            raise FilterError(f"{where}: {prefix or 'the filter'} has a key without a name")
        path = prefix + name
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, path + ".", where)
        else:
            yield path, None if isinstance(value, Mapping) else value


def _resolve(path: str, where: str) -> tuple[str, type, tuple[str, ...]]:
    """(spelled path in the model, type there, keys below it in a free-form part)."""
    known = _paths()
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        found = known.get(".".join(parts[:end]).lower())
        if found and (end == len(parts) or found[1] is dict):
            return found[0], found[1], tuple(parts[end:])
    nearest = _nearest(path)
    raise FilterError(
        f"{where}: no event has {path!r}",
        f"did you mean {nearest}?" if nearest else f"parts are {', '.join(_tops())}",
    )


def _tops() -> list[str]:
    return [spelled for spelled, _ in _paths().values() if "." not in spelled]


def _listed(value: Any, path: str, where: str) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    if not values:
        raise FilterError(
            f"{where}: {path} has an empty list, which no event can match",
            f"list the values, or leave them out to pass every event that has {path}",
        )
    return values


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


# ── values ──────────────────────────────────────────────────────────────────────────────────


def _typed(value: Any, path: str, kind: type, where: str) -> object:
    """The value as the field at `path` would hold it: 25 and "25" are the same port."""
    noun: str
    typed: object
    if kind is bool:
        noun, typed = "true or false", _truth(value)
    elif kind is int or kind is float:
        noun, typed = "a number", _number(value, whole=kind is int)
    elif kind is str:
        noun, typed = "text (is it in quotes?)", _string(value)
    else:
        below = [s for s, _ in _paths().values() if s.startswith(path + ".")]
        raise FilterError(
            f"{where}: {path} is a part of an event and cannot equal {_shown(value)}",
            f"give no value, or name a field: {', '.join(below) or path + '.KEY'}",
        )
    if typed is None:
        raise FilterError(f"{where}: {path} is {noun}, never {_shown(value)}")
    if path == "result.portscan.state" and str(typed) not in STATES:
        raise FilterError(
            f"{where}: {path} is never {_shown(value)}", f"states are {', '.join(STATES)}"
        )
    return typed


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else _TRUTHS.get(str(value).strip().lower())


def _number(value: Any, *, whole: bool) -> float | None:
    """An int or float (they compare alike), also out of text; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (whole and not number.is_integer()):
        return None
    return number


def _string(value: Any) -> str | None:
    """Text, also out of a number that YAML read; not out of its booleans, dates, mappings."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value)


def _text(value: Any, path: str, where: str) -> str:
    """A value in a free-form part as text: there, "25" and 25, "true" and true are the same."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value)
    raise FilterError(f"{where}: {path} cannot be compared with {_shown(value)}")


# ── what runs once an event ─────────────────────────────────────────────────────────────────


def _any_of(checks: tuple[Predicate, ...]) -> Predicate:
    if len(checks) == 1:
        return checks[0]

    def passes(event: Event) -> bool:
        for check in checks:  # noqa: SIM110 (twice as fast as any() over a generator)
            if check(event):
                return True
        return False

    return passes


def _has_part(path: str) -> Predicate:
    get = attrgetter(path)

    def has(event: Event) -> bool:
        try:
            return get(event) is not msgspec.UNSET
        except AttributeError:  # a part above it is absent: UNSET has no fields
            return False

    return has


def _field_is(path: str, wanted: frozenset[object]) -> Predicate:
    get = attrgetter(path)

    def equals(event: Event) -> bool:
        try:
            return get(event) in wanted
        except AttributeError:
            return False

    return equals


_ABSENT: Final = object()


def _descend(event: Event, get: Callable[[Event], Any], keys: tuple[str, ...]) -> Any:
    """The value below a free-form part; keys match in any case, exact spelling first."""
    try:
        node = get(event)
    except AttributeError:
        return _ABSENT
    for key in keys:
        if not isinstance(node, Mapping):
            return _ABSENT
        if key in node:
            node = node[key]
        else:
            lower = key.lower()
            node = next((v for k, v in node.items() if str(k).lower() == lower), _ABSENT)
    return node


def _has_key(path: str, keys: tuple[str, ...]) -> Predicate:
    get = attrgetter(path)
    return lambda event: _descend(event, get, keys) is not _ABSENT


def _key_is(path: str, keys: tuple[str, ...], wanted: frozenset[str]) -> Predicate:
    get = attrgetter(path)

    def equals(event: Event) -> bool:
        found = _descend(event, get, keys)
        values = found if isinstance(found, list | tuple) else (found,)
        return any(
            _text(value, "", "") in wanted
            for value in values
            if isinstance(value, str | int | float)
        )

    return equals

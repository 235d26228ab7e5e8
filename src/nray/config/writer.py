"""A `Config` as the YAML that `reader.loads` turns into an equal one; references stay references,
and secrets that are none are masked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from nray.config.kinds import Quoted
from nray.config.nodes import Scalar
from nray.config.references import TAGS
from nray.config.schema import Config, Section, fields

#: Lists are broken at this column.
_WIDTH_COLUMNS = 100


def to_yaml(config: Config) -> str:
    """Every key with its value, defaults filled in, secrets masked. What was written as a
    reference is written as one.

    A key that has no value (`seed`, say) is written as ``null``; an output that the configuration
    does not have is left out, for its mere presence would switch it on.
    """
    return yaml.dump(
        _section(config, "", config.references),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=_WIDTH_COLUMNS,
    )


_References = Mapping[str, Scalar | tuple[Scalar, ...]]


def _section(section: Section, prefix: str, references: _References) -> dict[str, object]:
    written: dict[str, object] = {}
    for field in fields(type(section)):
        value: Any = getattr(section, field.attribute)
        path = prefix + field.key
        if path in references:
            reference = references[path]
            written[field.key] = list(reference) if isinstance(reference, tuple) else reference
        elif field.kind is not None:
            plain = None if value is None else field.kind.write(value)
            if isinstance(plain, dict):
                plain = {key: references.get(f"{path}.{key}", each) for key, each in plain.items()}
            written[field.key] = plain
        elif value is not None:
            written[field.key] = _section(value, f"{path}.", references)
    return written


class _Dumper(yaml.SafeDumper):
    """Sections in block style, lists on one line, `Quoted` text in quotes, no anchors.

    References have no needless quotes: ``!env NAME``.
    """

    def choose_scalar_style(self) -> str:
        event: Any = self.event
        if event.tag not in TAGS:
            return super().choose_scalar_style()
        # Quotes keep YAML from guessing a type, and beside a tag it does not guess.
        before, event.implicit = event.implicit, (True, False)
        try:
            return super().choose_scalar_style()
        finally:
            event.implicit = before

    def ignore_aliases(self, data: object) -> bool:
        return True


def _list(dumper: _Dumper, data: list[object]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


def _map(dumper: _Dumper, data: dict[object, object]) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=False)


def _quoted(dumper: _Dumper, data: Quoted) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(data), style="'")


def _scalar(dumper: _Dumper, data: Scalar) -> yaml.Node:
    if data.reference is not None:
        return dumper.represent_scalar(data.reference.tag, data.reference.name)
    if data.plain:
        tag: str = dumper.resolve(yaml.ScalarNode, data.text, (True, False))  # type: ignore[no-untyped-call]
        return dumper.represent_scalar(tag, data.text)
    style = '"' if data.double_quoted else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", data.text, style=style)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(Scalar, _scalar)
_Dumper.add_representer(dict, _map)
_Dumper.add_representer(Quoted, _quoted)

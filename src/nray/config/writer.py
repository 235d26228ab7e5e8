"""A `Config` as the YAML that `reader.loads` turns into an equal one, secrets apart."""

from __future__ import annotations

from typing import Any

import yaml

from nray.config.kinds import Quoted
from nray.config.schema import Config, Section, fields

#: Lists are broken at this column.
_WIDTH_COLUMNS = 100


def to_yaml(config: Config) -> str:
    """Every key with its value, defaults filled in, secrets masked.

    A key that has no value (`seed`, say) is written as ``null``; an output that the configuration
    does not have is left out, for its mere presence would switch it on.
    """
    return yaml.dump(
        _section(config),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=_WIDTH_COLUMNS,
    )


def _section(section: Section) -> dict[str, object]:
    written: dict[str, object] = {}
    for field in fields(type(section)):
        value: Any = getattr(section, field.attribute)
        if field.kind is not None:
            written[field.key] = None if value is None else field.kind.write(value)
        elif value is not None:
            written[field.key] = _section(value)
    return written


class _Dumper(yaml.SafeDumper):
    """Sections in block style, lists on one line, `Quoted` text in quotes, no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _list(dumper: _Dumper, data: list[object]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


def _map(dumper: _Dumper, data: dict[object, object]) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=False)


def _quoted(dumper: _Dumper, data: Quoted) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(data), style="'")


_Dumper.add_representer(list, _list)
_Dumper.add_representer(dict, _map)
_Dumper.add_representer(Quoted, _quoted)

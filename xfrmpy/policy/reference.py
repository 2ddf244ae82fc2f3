"""The reference of the keys, drawn from their descriptions in `schema/`.

`docs/policy.md` holds what `reference_markdown` gives; a test compares the two. To bring it up to
date: `python -m xfrmpy.policy.reference`, and paste.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import yaml
from pydantic.fields import FieldInfo

from xfrmpy.policy.schema.file import PolicyFile
from xfrmpy.policy.schema.keys import Keys, is_future, nested
from xfrmpy.policy.schema.radius import RadiusKeys
from xfrmpy.policy.schema.tunnel import Tunnel


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key that is supported; its name has those of what it stands in before it."""

    name: str
    example: str
    meaning: str


def file_keys() -> tuple[Key, ...]:
    """The keys of a file in the long form."""
    return tuple(_supported(PolicyFile.model_fields.items()))


def tunnel_keys() -> tuple[Key, ...]:
    """The keys of a tunnel."""
    return tuple(_supported(_rows(Tunnel)))


def radius_keys() -> tuple[Key, ...]:
    """The keys of a group of RADIUS servers."""
    return tuple(_supported(_rows(RadiusKeys)))


def reference_markdown() -> str:
    """Three tables, of a file's keys, of a tunnel's and of a group of RADIUS servers, and the keys
    that are not supported yet."""
    rows = [*PolicyFile.model_fields.items(), *_rows(Tunnel)]
    future = ", ".join(f"`{name}`" for name, field in rows if is_future(field))
    return (
        f"Keys of a file in the long form:\n\n{_table(file_keys())}\n"
        f"Keys of a tunnel; `NAME` is yours to choose:\n\n{_table(tunnel_keys())}\n"
        f"Keys of a group of RADIUS servers, under `radius`:\n\n{_table(radius_keys())}\n"
        f"Known, and not supported yet: {future}.\n"
    )


def _rows(model: type[Keys], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field
        inner, named = nested(field)
        if inner is not None:
            yield from _rows(inner, f"{prefix}{name}.NAME." if named else f"{prefix}{name}.")


def _supported(rows: Iterable[tuple[str, FieldInfo]]) -> Iterator[Key]:
    for name, field in rows:
        if not is_future(field):
            example = _flow((field.examples or [""])[0])
            yield Key(name=name, example=example, meaning=field.description or "")


def _table(keys: Iterable[Key]) -> str:
    lines = ["| key | example | meaning |", "|---|---|---|"]
    lines += [f"| `{key.name}` | `{key.example}` | {key.meaning} |" for key in keys]
    return "\n".join(lines) + "\n"


def _flow(example: object) -> str:
    if isinstance(example, dict | list):
        dumped: str = yaml.safe_dump(example, default_flow_style=True, sort_keys=False, width=1000)
        return dumped.strip()
    return str(example)


if __name__ == "__main__":
    print(reference_markdown())

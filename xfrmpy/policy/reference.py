"""The reference of the keys, drawn from their descriptions in `schema.py`.

`docs/policy.md` holds what `reference_markdown` gives; a test compares the two. To bring it up to
date: `python -m xfrmpy.policy.reference`, and paste.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import yaml
from pydantic.fields import FieldInfo

from xfrmpy.policy.schema import Keys, PolicyFile, Tunnel, is_future, nested

Row = tuple[str, FieldInfo]


def reference_markdown() -> str:
    """Two tables, of a file's keys and of a tunnel's, and the keys that are not supported yet."""
    file, tunnel = list(PolicyFile.model_fields.items()), list(_rows(Tunnel))
    future = ", ".join(f"`{name}`" for name, field in (*file, *tunnel) if is_future(field))
    return (
        f"Keys of a file in the long form:\n\n{_table(file)}\n"
        f"Keys of a tunnel; `NAME` is yours to choose:\n\n{_table(tunnel)}\n"
        f"Known, and not supported yet: {future}.\n"
    )


def _rows(model: type[Keys], prefix: str = "") -> Iterator[Row]:
    for name, field in model.model_fields.items():
        yield prefix + name, field
        inner, named = nested(field)
        if inner is not None:
            yield from _rows(inner, f"{prefix}{name}.NAME." if named else f"{prefix}{name}.")


def _table(rows: Iterable[Row]) -> str:
    lines = ["| key | example | meaning |", "|---|---|---|"]
    for name, field in rows:
        if not is_future(field):
            example = _flow((field.examples or [""])[0])
            lines.append(f"| `{name}` | `{example}` | {field.description} |")
    return "\n".join(lines) + "\n"


def _flow(example: object) -> str:
    if isinstance(example, dict | list):
        dumped: str = yaml.safe_dump(example, default_flow_style=True, sort_keys=False, width=1000)
        return dumped.strip()
    return str(example)


if __name__ == "__main__":
    print(reference_markdown())

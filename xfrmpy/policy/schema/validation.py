"""Maps of a file become sections of the language, or errors with place and fix."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from xfrmpy.policy import values
from xfrmpy.policy.document import Node
from xfrmpy.policy.errors import MAX_FINDINGS, Findings, shown
from xfrmpy.policy.schema.file import PolicyFile
from xfrmpy.policy.schema.keys import Keys, keys_of, nested
from xfrmpy.policy.schema.tunnel import Tunnel

Model = TypeVar("Model", bound=Keys)


def validate(model: type[Model], node: Node, findings: Findings) -> Model | None:
    """The keys of a map, parsed; or None, with an error for each thing that is wrong."""
    try:
        return model.model_validate(node.plain())
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False)[:MAX_FINDINGS]:
            _report(model, node, detail, findings)
    return None


def _report(model: type[Keys], root: Node, detail: ErrorDetails, findings: Findings) -> None:
    path, code = detail["loc"], detail["type"]
    wrong_key = code == "XF1004" and path[-1:] == ("[key]",)  # pydantic's mark for a map's key
    path = path[:-1] if wrong_key else path
    node, depth = root.find(path)
    if findings.has("XF1001", node.mark):
        return  # what stands here was refused already
    names = [part for part in path[:depth] if isinstance(part, str)]
    subject = shown(names[-1]) if names else "the file"
    context = detail.get("ctx", {})
    match code:
        case "extra_forbidden":
            hint = _known_keys(_model_at(model, path[:-1]), str(path[-1]))
            findings.error("XF1002", node.key_mark, f"unknown key {subject}", hint)
        case "model_type" | "dict_type":
            problem = "has no value" if node.value is None else "must be a map of keys"
            findings.error("XF1004", node.mark, f"{subject} {problem}")
        case _:
            mark = node.key_mark if wrong_key or context["at_key"] else node.mark
            findings.error(code, mark, f"{subject} {context['message']}", context["hint"])


def _known_keys(model: type[Keys], key: str) -> str:
    known = keys_of(model)
    if model is PolicyFile and key in Tunnel.model_fields:
        return "a key of a tunnel belongs under tunnels: NAME:"
    few = f"known here: {', '.join(known)}" if len(known) < 8 else ""
    return values.nearest(key, known) or few


def _model_at(model: type[Keys], path: tuple[str | int, ...]) -> type[Keys]:
    parts = iter(part for part in path if isinstance(part, str))
    for part in parts:
        inner, named = nested(model.model_fields[part])
        if named:
            next(parts)
        model = inner or model
    return model

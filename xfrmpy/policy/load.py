"""Policy files into `TunnelPolicy` values: which files count, and how they are read.

Nothing that an operator can put into a directory makes this raise: every fault is a `PolicyError`
with its place, all of them are found in one go, and a file with an error is left out as a whole
while the others load. Beside `files.py` and `keys.py` the only one here that touches files.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from xfrmpy.ipsec.selectors import Selector
from xfrmpy.policy.blocking import block_exits, blocked_traffic
from xfrmpy.policy.document import Node, compose_document, decode_text
from xfrmpy.policy.errors import START, Findings, Mark, PolicyError
from xfrmpy.policy.files import printable, read_regular, reason_of
from xfrmpy.policy.interfaces import report_clashes
from xfrmpy.policy.keys import KeyFiles, NoKeys
from xfrmpy.policy.model import OnDown, Shunt, TunnelPolicy
from xfrmpy.policy.radius import resolve_groups, with_servers
from xfrmpy.policy.resolve import (
    MAX_TUNNELS,
    Numbers,
    Place,
    assign_reqids,
    child_names,
    find_overlaps,
    on_down,
    resolve_tunnel,
)
from xfrmpy.policy.schema.file import PolicyFile
from xfrmpy.policy.schema.shunts import ShuntKeys
from xfrmpy.policy.schema.tunnel import Tunnel
from xfrmpy.policy.schema.validation import validate
from xfrmpy.policy.shunts import find_ambiguities, find_impossible, resolve_shunt, with_inside
from xfrmpy.policy.values import NAME, NAME_RULE

__all__ = [
    "DEFAULT_LAYERS",
    "LoadedPolicy",
    "Overlay",
    "PolicyError",
    "config_path",
    "load_files",
    "load_policy",
    "operator_layer",
]

DEFAULT_LAYERS = tuple(Path(root, "xfrmpy/conf.d") for root in ("/usr/lib", "/etc", "/run"))
"""Lowest first: the packager's, the operator's, and what lasts until the next boot."""

MAX_FILE = 1 << 20
"""Octets; some 7,000 tunnels in one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPolicy:
    """The tunnels in force, in the order of their names, and all that was found.

    `blocked` is the traffic that must not go in clear, also that of tunnels left out for an error;
    it may go by the devices `block_exits`.
    """

    tunnels: tuple[TunnelPolicy, ...]
    errors: tuple[PolicyError, ...]
    warnings: tuple[PolicyError, ...]
    blocked: tuple[Selector, ...] = ()
    shunts: tuple[Shunt, ...] = ()
    block_exits: frozenset[str] = frozenset()


def config_path(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The layers to load: `XFRMPY_CONFIG_PATH` (colon separated, lowest first) or the default."""
    given = tuple(Path(part) for part in environ.get("XFRMPY_CONFIG_PATH", "").split(":") if part)
    return given or DEFAULT_LAYERS


def operator_layer(layers: Sequence[Path]) -> Path:
    """The layer that the operator's files are in: of the defaults, the one in `/etc`."""
    return layers[min(1, len(layers) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """Files that are to be in the operator's layer, by their names; `alone` if no others are."""

    files: Mapping[str, bytes]
    alone: bool = False


def load_policy(layers: Sequence[Path], overlay: Overlay | None = None) -> LoadedPolicy:
    """Load directories, lowest first; a file hides those of the same name in lower ones.

    A directory that is not there is an empty one. Secrets are looked for in the directory
    `secrets` beside each layer, the highest first. With an `overlay`, as if it were there already.
    """
    chosen: dict[str, _Source] = {}
    faults: list[Findings] = []
    for layer in layers:
        is_overlaid = overlay is not None and layer == operator_layer(layers)
        if overlay is None or not (is_overlaid and overlay.alone):
            listed = _list_directory(layer, faults)
            chosen.update((path.name, _Source(path=path)) for path in listed)
        if overlay is not None and is_overlaid:
            for name, data in overlay.files.items():
                chosen[name] = _Source(path=layer / name, data=data)
    sources = [chosen[name] for name in sorted(chosen)]
    return _load(sources, faults, KeyFiles([layer.parent / "secrets" for layer in layers]))


def load_files(
    files: Sequence[Path], *, secrets: Sequence[Path], public_halves: bool = False
) -> LoadedPolicy:
    """Load files, and every file of the directories among them; `secrets` are lowest first.

    With `public_halves`, of private keys that are not there the public ones do (`KeyFiles`).
    """
    paths: list[Path] = []
    faults: list[Findings] = []
    for path in files:
        if os.path.isdir(path):  # unlike Path.is_dir, never raises
            paths += _list_directory(path, faults)
        else:
            paths.append(path)
    sources = [_Source(path=path) for path in dict.fromkeys(paths)]
    return _load(sources, faults, KeyFiles(secrets, public_halves=public_halves))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A policy file; `data` is what it holds, None if it is to be read."""

    path: Path
    data: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A tunnel as it is written, and where."""

    name: str
    tunnel: Tunnel
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """`names` are those of all its tunnels, `tunnels` those that could be parsed; `shunts` are
    there if the whole could be. `radius` is what its key of that name holds."""

    findings: Findings
    names: dict[str, Mark] = field(default_factory=dict)
    tunnels: tuple[_Written, ...] = ()
    radius: Node | None = None
    shunts: tuple[tuple[Place, Shunt], ...] = ()


def _load(sources: Iterable[_Source], faults: list[Findings], keys: KeyFiles) -> LoadedPolicy:
    files = [_read_file(source) for source in sources]
    _report_duplicates(files)
    reqids = assign_reqids(_labels_within_limit(files))
    if_ids = _assign_if_ids(files)
    groups = resolve_groups(((file.radius, file.findings) for file in files), keys)
    resolved: list[tuple[Place, TunnelPolicy]] = []
    left_out: list[TunnelPolicy | None] = []
    for written in (written for file in files for written in file.tunnels):
        ours = Numbers(
            if_id=if_ids.get(written.name, 0),
            reqids={child: reqids.get(label, 0) for child, label in _labels(written).items()},
        )
        policy = resolve_tunnel(written.name, written.tunnel, written.place, ours, keys)
        if policy is not None:
            policy = with_servers(policy, written.place, groups)
            resolved.append((written.place, policy))
        elif on_down(written.tunnel) is OnDown.BLOCK:
            left_out.append(_without_secret(written, ours))
    _report_overlaps(resolved)
    report_clashes(resolved)
    shunts = [shunt for file in files for shunt in file.shunts]
    _report_ambiguities(shunts, [policy for _, policy in resolved])
    _report_impossible(shunts, [policy for _, policy in resolved])
    findings = [*faults, *(file.findings for file in files)]
    good = [policy for place, policy in resolved if not place.findings.errors]
    blocking = [p for p in (*(p for _, p in resolved), *left_out) if p is not None]
    return LoadedPolicy(
        tunnels=tuple(sorted(good, key=lambda tunnel: tunnel.name)),
        errors=tuple(error for each in findings for error in _in_order(each.errors)),
        warnings=tuple(warning for each in findings for warning in _in_order(each.warnings)),
        blocked=blocked_traffic(blocking),
        block_exits=block_exits(blocking),
        shunts=with_inside([s for place, s in shunts if not place.findings.errors], good),
    )


def _without_secret(written: _Written, numbers: Numbers) -> TunnelPolicy | None:
    """What a tunnel would be if its secret could be read: its traffic is to be blocked anyway."""
    place = replace(written.place, findings=Findings(file=written.place.findings.file))
    return resolve_tunnel(written.name, written.tunnel, place, numbers, NoKeys())


def _in_order(found: Iterable[PolicyError]) -> list[PolicyError]:
    return sorted(found, key=lambda error: (error.line, error.column))


def _report_duplicates(files: Iterable[_File]) -> None:
    first: dict[str, str] = {}
    for file in files:
        for name, mark in file.names.items():
            if name in first:
                message = f"tunnel '{name}' is defined already at {first[name]}"
                file.findings.error("XF1006", mark, message)
            else:
                first[name] = f"{file.findings.file}:{mark.line}:{mark.column}"


def _labels(written: _Written) -> dict[str, str]:
    """What each child of a tunnel is called among those of all tunnels."""
    name = written.name
    return {
        child: name if child == name else f"{name}/{child}"
        for child in child_names(name, written.tunnel)
    }


def _labels_within_limit(files: Iterable[_File]) -> list[str]:
    labels: dict[str, None] = {}
    for file in files:
        ours = [label for written in file.tunnels for label in _labels(written).values()]
        if len(labels.keys() | set(ours)) > MAX_TUNNELS:
            file.findings.error("XF1011", START, f"more than {MAX_TUNNELS} Child SAs in all")
        else:
            labels.update(dict.fromkeys(ours))
    return list(labels)


def _assign_if_ids(files: Iterable[_File]) -> dict[str, int]:
    """For each tunnel with an interface; one that a policy names is not of these."""
    written = (written for file in files for written in file.tunnels)
    return assign_reqids(w.name for w in written if w.tunnel.interface is not None)


def _report_overlaps(resolved: Sequence[tuple[Place, TunnelPolicy]]) -> None:
    for overlap in find_overlaps([policy for _, policy in resolved]):
        earlier = resolved[overlap.earlier][1]
        place, later = resolved[overlap.later]
        if earlier.name == later.name:
            continue  # reported as a duplicate
        path = (
            ("remote",) if place.has("remote") else ("children", later.children[0].name, "remote")
        )
        message = (
            f"tunnel '{later.name}' would carry the same traffic as '{earlier.name}' "
            f"({earlier.origin}): {overlap.local} to {overlap.remote}"
        )
        place.error("XF1007", path, message)


def _report_ambiguities(
    shunts: Sequence[tuple[Place, Shunt]], tunnels: Sequence[TunnelPolicy]
) -> None:
    first: dict[str, str] = {}
    for place, shunt in shunts:
        if shunt.name in first:
            message = f"shunt '{shunt.name}' is defined already at {first[shunt.name]}"
            place.error("XF1006", (), message, at_key=True)
        first.setdefault(shunt.name, shunt.origin)
    for found in find_ambiguities([shunt for _, shunt in shunts], tunnels):
        place, shunt = shunts[found.shunt]
        message = (
            f"shunt '{shunt.name}' is about the same traffic as {found.what} ({found.origin}), "
            f"and nothing says which comes first: {found.selector}"
        )
        place.error(
            "XF1007",
            (),
            message,
            "give one another 'priority', or if it is the very same, other traffic",
            at_key=True,
        )


def _report_impossible(
    shunts: Sequence[tuple[Place, Shunt]], tunnels: Sequence[TunnelPolicy]
) -> None:
    for found in find_impossible([shunt for _, shunt in shunts], tunnels):
        place, shunt = shunts[found.shunt]
        place.error("XF1004", (), f"shunt '{shunt.name}' {found.reason}", at_key=True)


def _list_directory(directory: Path, faults: list[Findings]) -> list[Path]:
    """The policy files of a directory in lexical order; editors' hidden files are none."""
    findings = Findings(file=printable(directory))
    faults.append(findings)
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        findings.error("XF1012", START, f"the directory cannot be read: {reason_of(error)}")
        return []
    visible = [name for name in names if not name.startswith(".")]
    for name in visible:
        if name.endswith(".yml"):
            shown = printable(directory / name)
            findings.warn("XF1012", START, f"{shown} is not read", "rename it to end in .yaml")
    return [directory / name for name in visible if name.endswith(".yaml")]


def _read_file(source: _Source) -> _File:
    path, data = source.path, source.data
    findings = Findings(file=printable(path))
    try:
        if data is None:
            data, _ = read_regular(path, MAX_FILE)
    except (OSError, ValueError) as error:
        findings.error("XF1012", START, f"the file cannot be read: {reason_of(error)}")
        return _File(findings=findings)
    text = decode_text(data, findings)
    root = None if text is None else compose_document(text, findings)
    if root is None or root.value is None:
        return _File(findings=findings)
    if not isinstance(root.value, dict):
        findings.error("XF1004", root.mark, "the file must be a map of keys")
        return _File(findings=findings)
    if _is_long_form(root.value):
        return _read_long_form(root, root.value, findings)
    return _read_short_form(path.stem, root, findings)


def _is_long_form(keys: Iterable[str]) -> bool:
    """Whether a file has a key of the long form, or what looks like a misspelt one."""
    unknown = [key for key in keys if key not in Tunnel.model_fields]
    long_keys = [*PolicyFile.model_fields]
    return any(difflib.get_close_matches(key[:20], long_keys, n=1, cutoff=0.8) for key in unknown)


def _read_short_form(name: str, root: Node, findings: Findings) -> _File:
    if not NAME.fullmatch(name):
        message = f"the file's name, less its ending, is not a tunnel's name: {NAME_RULE}"
        findings.error("XF1004", root.mark, message, "rename the file")
        return _File(findings=findings)
    tunnel = validate(Tunnel, root, findings)
    place = Place(findings=findings, node=root)
    written = () if tunnel is None else (_Written(name=name, tunnel=tunnel, place=place),)
    return _File(findings=findings, names={name: root.mark}, tunnels=written)


def _read_long_form(root: Node, keys: dict[str, Node], findings: Findings) -> _File:
    nodes = keys["tunnels"].value if "tunnels" in keys else {}
    names = {name: n.key_mark for name, n in nodes.items()} if isinstance(nodes, dict) else {}
    defaults = keys.get("defaults")
    written = [
        _Written(
            name=name,
            tunnel=tunnel,
            place=Place(findings=findings, node=node, defaults=defaults),
        )
        for name, node, tunnel in _long_form_tunnels(root, nodes, defaults, findings)
    ]
    shunts = tuple(_shunts(keys.get("shunts"), findings))
    return _File(
        findings=findings,
        names=names,
        tunnels=tuple(written),
        radius=keys.get("radius"),
        shunts=shunts,
    )


def _shunts(node: Node | None, findings: Findings) -> Iterator[tuple[Place, Shunt]]:
    """Those of a file that can be parsed; what is wrong with the others is reported already."""
    for name, each in node.value.items() if node and isinstance(node.value, dict) else ():
        keys = validate(ShuntKeys, each, Findings(file=findings.file))
        if keys is not None:
            place = Place(findings=findings, node=each)
            shunt = resolve_shunt(name, keys, place)
            if shunt is not None:
                yield place, shunt


def _long_form_tunnels(
    root: Node, nodes: object, defaults_node: Node | None, findings: Findings
) -> Iterator[tuple[str, Node, Tunnel]]:
    """The tunnels with their defaults; of a file with errors too, those that have none."""
    file = validate(PolicyFile, root, findings)
    reported = Findings(file=findings.file)
    defaults = validate(Tunnel, defaults_node, reported) if defaults_node else Tunnel()
    if not isinstance(nodes, dict) or defaults is None:
        return
    for name, node in nodes.items():
        tunnel = file.tunnels[name] if file and file.tunnels else validate(Tunnel, node, reported)
        if tunnel is not None:
            yield name, node, _with_defaults(tunnel, defaults)


_ALTERNATIVES = (
    ({"children"}, {"local", "remote"}),
    ({"local", "remote"}, {"children"}),
    ({"ah"}, {"esp"}),
    ({"esp"}, {"ah"}),
    ({"auth"}, {"psk", "id", "peer_id", "cert", "ca"}),
    ({"psk", "id", "peer_id", "cert", "ca"}, {"auth"}),
    ({"psk"}, {"cert", "ca"}),
)
"""A tunnel that gives one of the first does without the defaults for the second."""


def _with_defaults(tunnel: Tunnel, defaults: Tunnel) -> Tunnel:
    """A key that the tunnel gives replaces the default's as a whole."""
    own = tunnel.model_fields_set
    replaced = set[str]().union(*(others for keys, others in _ALTERNATIVES if keys & own))
    return defaults.model_copy(update={key: getattr(tunnel, key) for key in own | replaced})

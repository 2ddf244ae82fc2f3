"""Shunts in policy files: what they mean, what is refused, and what comes first."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from xfrmpy.ipsec.selectors import selectors_between
from xfrmpy.ipsec.spd import MAX_PRIORITY, Action, PolicyDirection, selector_priority
from xfrmpy.policy.load import LoadedPolicy, load_files
from xfrmpy.policy.model import Shunt
from xfrmpy.policy.shunts import (
    blocked_by_default,
    bypassed,
    compare_shunts,
    entries_of,
    lets_through,
)

TUNNEL = """\
tunnels:
  a:
    peer: 192.0.2.2
    psk: secret:a
    local: 10.1.0.0/16
    remote: 10.2.0.0/16
"""


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    directory = tmp_path / "secrets"
    directory.mkdir()
    (directory / "a").write_text("a secret of some thirty octets\n")
    (directory / "a").chmod(0o600)
    return directory


def read(secrets: Path, text: str) -> LoadedPolicy:
    file = secrets.parent / "t.yaml"
    file.write_text(text)
    return load_files([file], secrets=[secrets])


def messages(loaded: LoadedPolicy) -> list[str]:
    return [f"{e.line}: {e.code}: {e.message}" for e in loaded.errors]


def test_a_shunt_has_its_entries_in_every_direction(secrets: Path) -> None:
    loaded = read(secrets, "shunts:\n  x: {action: drop, remote: '10.9.0.0/16[tcp/25]'}\n")
    assert messages(loaded) == []
    (shunt,) = loaded.shunts
    assert (shunt.name, shunt.action, shunt.priority) == ("x", Action.DISCARD, None)
    entries = entries_of([shunt])
    assert [(str(e.direction), str(e.selector)) for e in entries] == [
        ("out", "0.0.0.0/0 -> 10.9.0.0/16 tcp"),
        ("in", "10.9.0.0/16 -> 0.0.0.0/0 tcp"),
        ("fwd", "10.9.0.0/16 -> 0.0.0.0/0 tcp"),
    ]
    assert entries[0].selector.destination_port.value == 25
    assert entries[1].selector.source_port.value == 25


def test_the_widest_shunt_comes_before_the_most_specific_tunnel(secrets: Path) -> None:
    loaded = read(
        secrets,
        TUNNEL.replace("10.1.0.0/16", "fd00::1[tcp/1]").replace("10.2.0.0/16", "fd00::2[tcp/2]")
        + "shunts:\n  x: {action: bypass, local: '::/0', remote: '::/0'}\n",
    )
    (child,) = loaded.tunnels[0].children
    (selector,) = selectors_between(child.local, child.remote)
    protect = selector_priority(selector)
    assert all(entry.priority < protect for entry in entries_of(loaded.shunts))


def test_an_explicit_priority_counts_for_shunts_and_for_children(secrets: Path) -> None:
    text = (
        TUNNEL + "    priority: 7\nshunts:\n  x: {action: drop, remote: '::/0', priority: 200000}\n"
    )
    loaded = read(secrets, text)
    assert messages(loaded) == []
    assert {entry.priority for entry in entries_of(loaded.shunts)} == {200_000}
    assert loaded.tunnels[0].children[0].priority == 7


def test_a_default_has_no_traffic_and_what_passes_all_the_same_comes_last(secrets: Path) -> None:
    loaded = read(secrets, "shunts:\n  rest: {action: drop, default: [out, in, out]}\n")
    assert messages(loaded) == []
    assert blocked_by_default(loaded.shunts) == {PolicyDirection.IN, PolicyDirection.OUT}
    entries = entries_of(loaded.shunts)
    assert {(e.action, e.priority) for e in entries} == {(Action.BYPASS, MAX_PRIORITY + 1)}
    assert bypassed(loaded.shunts) == ()
    discovery = [e for e in entries if e.direction is PolicyDirection.OUT]
    for kind in range(256):
        passes = any(e.selector.source_port.matches(kind) for e in discovery)
        assert passes == (133 <= kind <= 137)


def inside(loaded: LoadedPolicy) -> set[tuple[str, str, str]]:
    """What the default lets pass of IPv4 besides errors of paths."""
    return {
        (entry.direction.value, str(entry.selector.source), str(entry.selector.destination))
        for entry in entries_of(s for s in loaded.shunts if s.default)
        if entry.selector.source.version == 4 and not entry.selector.protocol
    }


def test_a_default_knows_what_tunnels_carry_for_the_hosts_behind(secrets: Path) -> None:
    rest = "shunts:\n  rest: {action: drop, default: %s}\n"
    ours, theirs = "10.1.0.0/16", "10.2.0.0/16"
    ways = {"fwd": ("fwd", ours, theirs), "out": ("out", theirs, ours)}
    assert inside(read(secrets, TUNNEL + rest % "[in, out, forward]")) == {*ways.values()}
    assert inside(read(secrets, TUNNEL + rest % "out")) == {ways["out"]}
    assert inside(read(secrets, TUNNEL + rest % "in")) == set()
    (change,) = compare_shunts(
        read(secrets, rest % "out").shunts, read(secrets, TUNNEL + rest % "out").shunts
    )
    ((key, before, after),) = change.differences()
    assert (key, before) == ("inside", "")
    assert ours in after


def test_a_default_knows_what_bypasses_let_hosts_behind_do(secrets: Path) -> None:
    web = "  web: {action: bypass, local: 10.1.0.0/16, remote: 198.51.100.0/24}\n"
    loaded = read(secrets, f"shunts:\n{web}  rest: {{action: drop, default: [out, forward]}}\n")
    here, there = "10.1.0.0/16", "198.51.100.0/24"
    assert inside(loaded) == {("fwd", here, there), ("out", there, here)}


@pytest.mark.parametrize(
    "named",
    [
        "    interface: 169.254.1.1/30\n",
        "    mark_out: 7\n",
        "shunts:\n  inside: {action: drop, local: 10.2.0.0/16, remote: 10.1.0.0/16}\n",
    ],
)
def test_what_has_entries_of_its_own_or_goes_by_routes_is_not_let_pass(
    secrets: Path, named: str
) -> None:
    rest = "  rest: {action: drop, default: [out, forward]}\n"
    head = "" if named.startswith("shunts") else "shunts:\n"
    loaded = read(secrets, TUNNEL + named + head + rest)
    assert messages(loaded) == []
    assert inside(loaded) == set()


def test_a_tunnel_between_equal_ends_keeps_its_own_entries(secrets: Path) -> None:
    both = TUNNEL.replace("10.1.0.0/16", "10.0.0.0/8").replace("10.2.0.0/16", "10.0.0.0/8")
    loaded = read(secrets, both + "shunts:\n  rest: {action: drop, default: [out, forward]}\n")
    assert messages(loaded) == []
    assert inside(loaded) == set()


def test_a_default_cuts_who_is_nobodys_and_nobody_who_only_passes_through(secrets: Path) -> None:
    def of(directions: str) -> tuple[Shunt, ...]:
        return read(secrets, f"shunts:\n  r: {{action: drop, default: {directions}}}\n").shunts

    here, there = ip_address("192.0.2.1"), ip_address("198.51.100.9")
    cuts = {
        (before, after): change.cuts(here, there)
        for before, after in (("", "in"), ("", "forward"), ("in", "[in, out]"), ("[in, out]", "in"))
        for change in compare_shunts(of(before) if before else (), of(after))
    }
    assert [*cuts.values()] == [True, False, True, False]
    (change,) = compare_shunts((), of("[forward, in]"))
    assert set(change.differences()) == {
        ("action", "", "drop"),
        ("default", "", "in, forward"),
    }
    (ssh,) = read(secrets, "shunts:\n  s: {action: bypass, remote: 198.51.100.0/24}\n").shunts
    assert lets_through(ssh, here, there)
    assert not lets_through(ssh, here, ip_address("203.0.113.1"))


def test_a_default_is_not_had_beside_a_tunnel_in_user_space(secrets: Path) -> None:
    text = f"{TUNNEL}    datapath: userspace\nshunts:\n  r: {{action: drop, default: in}}\n"
    (error,) = read(secrets, text).errors
    assert (error.code, error.line) == ("XF1004", 9)
    assert "tunnel 'a'" in error.message
    assert "default policy" in error.message


def test_there_is_one_default(secrets: Path) -> None:
    text = "shunts:\n  a: {action: drop, default: in}\n  b: {action: drop, default: out}\n"
    assert [error.code for error in read(secrets, text).errors] == ["XF1007"]


@pytest.mark.parametrize(
    ("shunts", "expected"),
    [
        (
            "  x: {action: bypass, default: in}\n",
            "9: XF1004: 'default' goes with 'action: drop': what nothing names passes by itself",
        ),
        (
            "  x: {action: drop, default: fwd}\n",
            "9: XF1004: 'default' must be in, out, forward, or several, not 'fwd'",
        ),
        (
            "  x: {action: drop, default: in, priority: 5}\n",
            "9: XF1004: 'priority' and 'default' exclude each other: the rest has no priority",
        ),
        ("  x: {remote: 10.0.0.0/8}\n", "9: XF1005: 'action' is missing"),
        ("  x: {action: drop}\n", "9: XF1005: 'remote' is missing"),
        (
            "  x: {action: pass, remote: 10.0.0.0/8}\n",
            "9: XF1004: 'action' must be bypass or drop, not 'pass'",
        ),
        (
            "  x: {action: drop, remote: 10.0.0.0/8, priority: 0}\n",
            "9: XF1004: 'priority' must be a whole number from 1 to 1000000, not 0",
        ),
        (
            "  x: {action: drop, local: '10.0.0.0/8[udp]', remote: '10.0.0.0/8[tcp]'}\n",
            "9: XF1004: 'local' and 'remote' have no address family and protocol in common",
        ),
        (
            "  x: {action: drop, remote: 10.0.0.0/8, peer: a}\n",
            "9: XF1002: unknown key 'peer'",
        ),
    ],
)
def test_what_is_wrong_with_a_shunt_is_told(secrets: Path, shunts: str, expected: str) -> None:
    loaded = read(secrets, f"{TUNNEL}\nshunts:\n{shunts}")
    assert messages(loaded) == [expected]
    assert loaded.shunts == ()


@pytest.mark.parametrize(
    ("second", "is_ambiguous"),
    [
        ("{action: bypass, local: 10.0.0.0/8, remote: 10.9.0.0/16}", True),
        ("{action: bypass, local: 10.0.0.0/8, remote: 10.9.0.0/16, priority: 5}", False),
        ("{action: drop, local: 10.0.0.0/8, remote: 10.9.0.0/16}", False),
        ("{action: bypass, local: 10.0.0.0/8, remote: 10.9.1.0/24}", False),
        ("{action: bypass, local: 11.0.0.0/8, remote: 10.9.0.0/16}", False),
        ("{action: drop, local: 10.0.0.0/16, remote: 10.8.0.0/8, priority: 9}", None),
        ("{action: drop, local: 10.0.0.0/16, remote: 10.0.0.0/8, priority: 9}", True),
    ],
)
def test_shunts_of_which_nothing_says_which_comes_first_are_refused(
    secrets: Path, second: str, is_ambiguous: bool | None
) -> None:
    first = "{action: drop, local: 10.0.0.0/16, remote: 10.0.0.0/8}"
    loaded = read(secrets, f"shunts:\n  x: {first}\n  y: {second}\n")
    codes = [error.code for error in loaded.errors]
    assert codes == {True: ["XF1007"], False: [], None: ["XF1004"]}[is_ambiguous]


@pytest.mark.parametrize(
    ("traffic", "reason"),
    [
        ("remote: '10.9.0.0/16[icmp/8]'", "no ICMP types"),
        ("remote: '10.9.0.0/16[tcp/65535]'", "ports from 1 to 65534"),
        ("remote: 10.9.0.0/16, priority: 70000", "before all tunnels"),
    ],
)
@pytest.mark.parametrize("datapath", ["kernel", "userspace", "auto"])
@pytest.mark.parametrize("action", ["bypass", "drop"])
def test_what_rules_of_routing_cannot_do_is_refused_where_they_are_known_to_be_needed(
    secrets: Path, traffic: str, reason: str, datapath: str, action: str
) -> None:
    tunnel = f"{TUNNEL}    datapath: {datapath}\n"
    loaded = read(secrets, f"{tunnel}shunts:\n  x: {{action: {action}, {traffic}}}\n")
    if action == "drop" and datapath != "userspace":
        assert messages(loaded) == []
        return
    (error,) = loaded.errors
    assert (error.code, error.line) == ("XF1004", 9)
    assert reason in error.message
    assert ("tunnel 'a'" in error.message) == (action == "drop")


def test_a_shunt_is_not_of_the_very_traffic_of_a_tunnel(secrets: Path) -> None:
    shunt = "{action: drop, local: 10.1.0.0/16, remote: 10.2.0.0/16, priority: 5}"
    (error,) = read(secrets, f"{TUNNEL}shunts:\n  x: {shunt}\n").errors
    assert error.code == "XF1007"
    assert "tunnel 'a'" in error.message


@pytest.mark.parametrize("apart", ["mark: 3", "interface: 169.254.10.1/30"])
def test_a_tunnel_with_a_mark_or_an_interface_stands_apart(secrets: Path, apart: str) -> None:
    text = TUNNEL.replace("    local: 10.1.0.0/16\n    remote: 10.2.0.0/16\n", f"    {apart}\n")
    if "mark" in apart:
        text += "    local: 0.0.0.0/0\n    remote: 0.0.0.0/0\n"
    shunt = "{action: drop, remote: 0.0.0.0/0, priority: 200000}"
    loaded = read(secrets, f"{text}shunts:\n  x: {shunt}\n")
    assert messages(loaded) == []


def test_two_shunts_of_a_name_are_refused(secrets: Path) -> None:
    for number, name in enumerate(("one", "two")):
        file = secrets.parent / f"{name}.yaml"
        file.write_text(f"shunts:\n  x: {{action: drop, remote: 10.{number}.0.0/16}}\n")
    files = sorted(secrets.parent.glob("*.yaml"))
    loaded = load_files(files, secrets=[secrets])
    assert [error.code for error in loaded.errors] == ["XF1006"]


def test_what_changes_is_told_by_name(secrets: Path) -> None:
    before = read(secrets, "shunts:\n  x: {action: drop, remote: 10.0.0.0/8}\n").shunts
    after = read(
        secrets,
        "shunts:\n\n  x: {action: bypass, remote: 10.0.0.0/8}\n"
        "  y: {action: drop, remote: '::/0'}\n",
    ).shunts
    changes = list(compare_shunts(before, after))
    assert [change.name for change in changes] == ["x", "y"]
    assert list(changes[0].differences()) == [("action", "drop", "bypass")]
    assert list(compare_shunts(after, after)) == []
    assert [str(s.destination) for s in bypassed(after)] == ["10.0.0.0/8"]
    assert entries_of(after)[0].direction is PolicyDirection.OUT

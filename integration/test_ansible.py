"""The collection in `ansible/`: `ansible-playbook` makes a mesh of gateways, and keeps it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.lab.fleet import COLLECTION, Controller, Fleet, Member, Played, changed, good
from integration.lab.gateway import XFRMPY
from integration.lab.process import eventually
from integration.lab.site import Site
from tests.test_ansible_filters import load_foreign

pytestmark = pytest.mark.native
"""Ansible is the same wherever the packets go, and starts hundreds of processes."""

PAGE = (COLLECTION.parent / "docs/ansible.md").read_text()
(MESH,) = re.findall(r"```yaml\n(# mesh.yml\n.*?)```", PAGE, re.DOTALL)
GATEWAY = """
- hosts: gateways
  gather_facts: false
  roles: [xfrmpy.gateway.gateway]
"""
DIFF = ("--diff",)
CHECK = ("--check", "--diff")
CONFIRM_SECONDS = 30
"""By then the next task must have found that it cannot come back, on a busy machine too."""


def await_suite(member: Member, tunnel: str, suite: str) -> None:
    def has_it() -> bool:
        (found,) = (each for each in member.status().tunnels if each.name == tunnel)
        return {child.suite.partition("-")[0] for child in found.children} == {suite}

    eventually(f"{tunnel} to have {suite}", has_it, seconds=30)


def test_a_mesh_is_made_and_changed_and_only_what_differs_is_touched() -> None:
    with Fleet() as fleet:
        members = fleet.members
        moon, sun, _ = members.values()

        told = good(fleet.play_text(MESH, arguments=CHECK))
        assert all(member.files() == {} for member in members.values())
        made = good(fleet.play_text(MESH, arguments=DIFF))
        assert changed(told) == changed(made) == {*members}
        assert made.diffs() == told.diffs() != []
        assert all(a.reaches(b) for a, b in permutations(members.values(), 2))
        for member in members.values():
            secrets = [s.decode().strip() for p, s in member.files().items() if "secrets" in p]
            assert len(secrets) == 2
            assert not any(secret in made.output for secret in secrets)

        before = {name: member.spis() for name, member in members.items()}
        assert changed(good(fleet.play_text(MESH, arguments=DIFF))) == set()
        assert {name: member.spis() for name, member in members.items()} == before

        pair = {"between": ["moon", "sun"], "policy": {"esp": "aes128gcm16"}}
        variables: dict[str, Any] = {"all": {"mesh_pairs": [pair]}}
        limit = ("--limit", "moon,sun")
        limited = good(fleet.play_text(MESH, limit, variables))
        assert changed(limited) == {"moon", "sun"}
        for member, peer in ((moon, "mesh-sun"), (sun, "mesh-moon")):
            await_suite(member, peer, "aes128gcm16")
        for name, member in members.items():
            after = member.spis()
            kept = {t: s for t, s in before[name].items() if {name, t[5:]} != {"moon", "sun"}}
            assert {tunnel: after[tunnel] for tunnel in kept} == kept

        files = {name: member.files() for name, member in members.items()}
        variables["all"]["mesh_defaults"] = {"dpd": "soon"}
        refused = fleet.play_text(MESH, limit, variables)
        assert refused.code != 0
        assert "nothing was deployed: sun: " in refused.output
        assert {name: member.files() for name, member in members.items()} == files

        variables = {"all": {"mesh_defaults": {"dpd": "17s"}}}
        assert_goes_on_without_one_that_is_unreachable(fleet, variables)
        assert_one_that_goes_leaves_nothing_and_the_others_as_they_are(fleet, variables)
        assert_spokes_reach_each_other_through_the_hub(fleet, variables)
        assert_reverts_when_the_play_does_not_come_back(fleet, moon, sun)


def assert_goes_on_without_one_that_is_unreachable(fleet: Fleet, variables: dict[str, Any]) -> None:
    """It keeps what it has, and the others their tunnels with it."""
    moon, sun, mars = fleet.members.values()
    files, names = mars.files(), mars.spis().keys()
    cut = {
        "namespace_reach": "192.0.2.99",
        "namespace_source": mars.leader,
        "namespace_address": mars.inside,
    }
    half = fleet.play_text(MESH, variables={**variables, "mars": cut})
    assert half.count("unreachable")["mars"] == 1, half.output
    assert not any(half.count("failed").values()), half.output
    assert changed(half) == {"moon", "sun"}
    assert mars.files() == files
    assert mars.spis().keys() == names
    assert all(mars.reaches(other) for other in (moon, sun))


def assert_one_that_goes_leaves_nothing_and_the_others_as_they_are(
    fleet: Fleet, variables: dict[str, Any]
) -> None:
    """Mars, which can be reached again, follows in the rest, too."""
    moon, sun, mars = fleet.members.values()
    before = {member: member.spis() for member in (moon, mars)}
    hosts = {"mesh_hosts": ["moon", "mars"]}
    good(fleet.play_text(MESH, variables={"all": {**variables["all"], **hosts}}))
    assert [tunnel.name for tunnel in sun.status().tunnels] == []
    for member in (moon, sun, mars):
        assert not any("sun" in path for path in member.files())
        assert all("sun" not in tunnel.name for tunnel in member.status().tunnels)
    assert not sun.reaches(moon)
    for member, spis in before.items():
        assert member.spis() == {t: s for t, s in spis.items() if t != "mesh-sun"}
        assert b"17s" in member.files()["conf.d/mesh.yaml"]


def assert_spokes_reach_each_other_through_the_hub(fleet: Fleet, variables: dict[str, Any]) -> None:
    moon, sun, mars = fleet.members.values()
    moon.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    hub = {**variables["all"], "mesh_topology": "hub", "mesh_hubs": ["moon"]}
    good(fleet.play_text(MESH, variables={"all": hub}))
    assert [sorted(member.spis()) for member in (moon, sun, mars)] == [
        ["mesh-mars", "mesh-sun"],
        ["mesh-moon"],
        ["mesh-moon"],
    ]
    for a, b in permutations((moon, sun, mars), 2):
        # What one end asks for while the other has its old policy is asked for again in between.
        eventually(f"{a.host.name} to reach {b.host.name}", partial(a.reaches, b), seconds=60)


def assert_reverts_when_the_play_does_not_come_back(
    fleet: Fleet, moon: Member, sun: Member
) -> None:
    """The way to moon leads through its tunnel with sun, which the change takes away."""
    files = moon.files()
    way = {
        "namespace_reach": moon.inside,
        "namespace_source": sun.leader,
        "namespace_address": sun.inside,
    }
    harm = {
        "name": "No tunnel",
        "xfrmpy.gateway.apply": {
            "files": {"mesh": {"tunnels": {}}},
            "confirm": CONFIRM_SECONDS,
            "program": "{{ gateway_program }}",
        },
    }
    confirm = {
        "name": "Back again",
        "xfrmpy.gateway.apply": {"state": "confirmed", "program": "{{ gateway_program }}"},
    }
    lost = fleet.play(harm, confirm, hosts="moon", variables={"moon": way})
    assert lost.count("changed") == {"moon": 1}, lost.output
    assert lost.count("unreachable") == {"moon": 1}, lost.output
    eventually("the tunnel to be back", lambda: "mesh-sun" in moon.spis(), seconds=120)
    assert moon.files() == files
    eventually("moon to be reached", lambda: sun.reaches(moon))


def test_a_mesh_of_raw_keys_is_told_of_exactly_and_remembers_who_is_not_there() -> None:
    with Fleet() as fleet:
        members = fleet.members
        moon, sun, mars = members.values()
        variables: dict[str, Any] = {"all": {"mesh_auth": "rawkey"}}
        told = good(fleet.play_text(MESH, CHECK, variables))
        assert all(member.files() == {} for member in members.values())
        made = good(fleet.play_text(MESH, DIFF, variables))
        assert changed(told) == changed(made) == {*members}
        assert made.diffs() == told.diffs() != []
        assert all(a.reaches(b) for a, b in permutations(members.values(), 2))
        for member in members.values():
            assert {*member.files()} == {"conf.d/mesh.yaml", "secrets/host.key"}
            assert member.files()["secrets/host.key"].decode().splitlines()[1] not in made.output
        assert changed(good(fleet.play_text(MESH, DIFF, variables))) == set()

        before, files = {name: member.spis() for name, member in members.items()}, mars.files()
        variables["all"]["mesh_defaults"] = {"dpd": "17s"}
        limited = good(fleet.play_text(MESH, ("--limit", "moon,sun"), variables))
        assert changed(limited) == {"moon", "sun"}
        assert all(b"17s" in member.files()["conf.d/mesh.yaml"] for member in (moon, sun))
        assert mars.files() == files
        assert {name: member.spis() for name, member in members.items()} == before


POLICY = {
    "peer": "192.0.2.2",
    "id": "moon",
    "peer_id": "sun",
    "psk": "secret:net",
    "local": "10.1.0.0/16",
    "remote": "10.2.0.0/16",
}
THEIRS = {
    **POLICY,
    "peer": "192.0.2.1",
    "id": "sun",
    "peer_id": "moon",
    "local": "10.2.0.0/16",
    "remote": "10.1.0.0/16",
}
KEY = "correct horse battery staple, and then some"


@pytest.fixture(scope="module")
def pair() -> Iterator[Fleet]:
    """Moon and sun, and a tunnel `net` between them in the policy of both."""
    with Fleet(("moon", "sun")) as fleet:
        for name, policy in (("moon", POLICY), ("sun", THEIRS)):
            member = fleet.members[name]
            answer = member.module("tunnel", name=["net"], policy=policy, secret=KEY)
            assert answer["changed"], answer
        yield fleet


def test_a_tunnel_is_brought_up_waited_for_and_taken_down(pair: Fleet) -> None:
    moon = pair.members["moon"]
    assert moon.module("tunnel", name=["net"], state="up", _ansible_check_mode=True)["changed"]
    assert moon.spis() == {}
    assert moon.module("tunnel", name=["net"], state="up")["changed"]
    assert not moon.module("tunnel", name=["net"], state="up")["changed"]
    assert not moon.module("tunnel", name=["net"], state="wait")["changed"]
    assert moon.reaches(pair.members["sun"])
    info = moon.module("tunnel_info", name=["net"])
    assert info["tunnels"]["net"]["state"] == "up"
    assert moon.module("tunnel", name=["net"], state="down")["changed"]
    assert not moon.module("tunnel", name=["net"], state="down")["changed"]
    late = moon.module("tunnel", name=["net"], state="wait", timeout=1)
    assert late["failed"]
    assert "net is not up" in late["msg"]


def test_a_tunnel_that_goes_leaves_the_others(pair: Fleet) -> None:
    moon = pair.members["moon"]
    extra = {**POLICY, "peer_id": "other", "local": "10.7.0.0/16"}
    assert moon.module("tunnel", name=["extra"], policy=extra)["changed"]
    assert {t.name for t in moon.status().tunnels} == {"net", "extra"}
    assert moon.module("tunnel", name=["extra"], state="absent")["changed"]
    assert not moon.module("tunnel", name=["extra"], state="absent")["changed"]
    assert {t.name for t in moon.status().tunnels} == {"net"}


def test_the_doctor_tells_of_a_problem_until_it_is_gone(pair: Fleet) -> None:
    moon = pair.members["moon"]
    moon.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    found = moon.module("doctor_info")
    (problem,) = [text for text in found["problems"] if text.startswith("forwarding: ")]
    assert found["counts"]["problem"] == len(found["problems"])
    assert problem.split(": ", 1)[1] in {each["summary"] for each in found["findings"]}
    moon.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    again = moon.module("doctor_info", _ansible_check_mode=True)
    assert (again["changed"], problem in again["problems"]) == (False, False)


def test_units_are_installed_once(pair: Fleet) -> None:
    moon = pair.members["moon"]
    told = moon.module("units", _ansible_check_mode=True)
    made = moon.module("units")
    assert made["files"] == told["files"]
    assert made["diff"] == told["diff"]
    assert "/etc/systemd/system/xfrmpyd.service" in made["files"]
    assert XFRMPY in (moon.root / "etc/systemd/system/xfrmpyd.service").read_text()
    assert not moon.module("units")["changed"]


def test_a_secret_is_generated_once_and_shown_as_a_fingerprint(pair: Fleet) -> None:
    moon = pair.members["moon"]
    told = moon.module("secret", name="new", generate=True, _ansible_check_mode=True)
    assert told["changed"]
    made = moon.module("secret", name="new", generate=True)
    assert made["diff"] == told["diff"]
    path = moon.root / "etc/xfrmpy/secrets/new"
    assert path.stat().st_mode & 0o777 == 0o400
    again = moon.module("secret", name="new", generate=True)
    assert (again["changed"], again["fingerprint"]) == (False, made["fingerprint"])
    info = moon.module("secret_info", name=["new", "none"])
    assert info["fingerprints"] == {"new": made["fingerprint"]}
    other = moon.module("secret", name="new", value="another key")
    assert other["diff"]["before"] == f"new: {made['fingerprint']}\n"
    assert other["diff"]["after"] == f"new: {other['fingerprint']}\n"
    assert moon.module("secret", name="new", state="absent")["changed"]
    assert not path.exists()


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("apply", {"files": {"net": {**POLICY, "lokal": "10.0.0.0/8"}}}, "conf.d/net.yaml:7:1"),
        ("apply", {"files": {"net": 5}}, "neither a mapping nor text"),
        ("apply", {"files": {"../net": POLICY}}, "cannot be the name of a policy file"),
        ("apply", {"files": {}, "src": "/etc/hostname"}, "mutually exclusive"),
        ("apply", {"src": "/nowhere"}, "/nowhere is no policy file"),
        ("apply", {"prune": True}, "would remove every tunnel"),
        ("apply", {"files": {"net": POLICY}, "secrets": {"net": ""}}, "is not text, or empty"),
        ("apply", {"confirm": "soon"}, "confirm"),
        ("apply", {"unheard": 1}, "Unsupported parameters"),
        ("apply", {"runtime_dir": "/nowhere"}, "XF4001: the daemon is not running"),
        ("apply", {"config_dir": "/tmp"}, "the daemon keeps its policy in"),
        ("tunnel", {"name": ["net", "two"], "policy": POLICY}, "one tunnel at a time"),
        ("tunnel", {"name": ["net"]}, "policy"),
        ("tunnel", {"name": ["gone"], "state": "up"}, "no such tunnel: gone; the policy has net"),
        ("tunnel_info", {"program": "/nowhere/xfrmpy"}, "/nowhere/xfrmpy"),
        ("doctor_info", {"program": "/nowhere/xfrmpy"}, "/nowhere/xfrmpy"),
        ("secret", {"name": "net"}, "one of `value` and `generate` is needed"),
        ("host_key", {"program": "/nowhere/xfrmpy"}, "/nowhere/xfrmpy"),
        ("pair_info", {"pairs": {"sun": {"ours": {}}}}, "no mapping of `ours` and `theirs`"),
        (
            "pair_info",
            {"pairs": {"sun": {"ours": {}, "theirs": {}, "keys": {"mine": ""}}}},
            "`keys` of sun is no mapping",
        ),
        (
            "pair_info",
            {"pairs": {"sun": {"ours": {"a": POLICY}, "theirs": {"b": {**THEIRS, "id": "luna"}}}},
             "secrets": {"net": KEY}},
            "XF2005",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_told_and_changes_nothing(
    pair: Fleet, module: str, arguments: dict[str, Any], words: str
) -> None:
    moon = pair.members["moon"]
    before = moon.files()
    answer = moon.module(module, **arguments)
    assert answer["failed"]
    assert words in answer["msg"]
    assert moon.files() == before


def test_what_the_daemon_refuses_comes_back_with_its_secrets(pair: Fleet) -> None:
    """Both files are good, but together they are not."""
    moon = pair.members["moon"]
    before = moon.files()
    answer = moon.module(
        "apply", files={"twice": {"tunnels": {"net": POLICY}}}, secrets={"net": "x" * 40}
    )
    assert answer["failed"]
    assert "net" in answer["msg"]
    assert moon.files() == before


def test_two_plays_at_once_are_one_play(pair: Fleet) -> None:
    moon = pair.members["moon"]
    before = moon.files()
    moon.run("flock", "/etc/xfrmpy", "true")  # Nobody else has it.
    with moon.holding_lock("/etc/xfrmpy"):
        answer = moon.module("apply", files={"net": {**POLICY, "dpd": "9s"}})
    assert answer["failed"]
    assert "another play is changing /etc/xfrmpy" in answer["msg"]
    assert moon.files() == before


def test_a_full_disk_leaves_the_policy_as_it_was(pair: Fleet) -> None:
    moon = pair.members["moon"]
    before = moon.files()
    with moon.full_disk("/etc/xfrmpy"):
        files = {"net": {**POLICY, "dpd": "9s"}, "more": "#" * 90_000 + "\ntunnels: {}\n"}
        answer = moon.module("apply", files=files, secrets={"net": "y" * 40})
        assert answer["failed"]
        assert "No space left on device" in answer["msg"]
        assert moon.files() == before
    assert moon.module("apply")["changes"] == []


CLOSED = """\
flush ruleset
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iif "lo" accept
    }
}
"""


def test_a_closed_gateway_lets_ipsec_in_and_nothing_else(pair: Fleet) -> None:
    moon, sun = pair.members["moon"], pair.members["sun"]
    conf = moon.root / "etc/nftables.conf"
    conf.write_text(CLOSED)
    moon.run("nft", "-f", "/etc/nftables.conf")
    limit, variables = ("--limit", "moon"), {"moon": {"gateway_nftables": "inet filter input"}}

    def play(*arguments: str) -> set[str]:
        return changed(good(pair.play_text(GATEWAY, (*limit, *arguments), variables)))

    def rules() -> str:
        return moon.run("nft", "list", "ruleset").stdout

    try:
        closed = rules()
        assert "up" not in sun.module("tunnel_info", name=["net"])["tunnels"]["net"]["state"]
        assert sun.module("tunnel", name=["net"], state="up", timeout=1)["failed"]
        assert play(*CHECK) == {"moon"}
        assert (conf.read_text(), rules()) == (CLOSED, closed)
        assert play() == {"moon"}
        opened = rules()
        assert sun.module("tunnel", name=["net"], state="up")["changed"]
        assert sun.run("ping", "-nc1", "-W1", moon.outside, check=False).returncode != 0
        assert play() == set()
        moon.run("nft", "-f", "/etc/nftables.conf")  # As at boot.
        assert rules() == opened != closed
    finally:
        moon.run("nft", "flush", "ruleset")
        for member in (moon, sun):
            member.module("tunnel", name=["net"], state="down")


def test_what_is_not_confirmed_is_taken_back_and_what_is_stays(pair: Fleet) -> None:
    moon = pair.members["moon"]
    before = moon.files()
    change = {"net": {**POLICY, "dpd": "9s"}}
    assert moon.module("apply", files=change, confirm=120)["confirm_seconds"] == 120
    assert moon.files() == before
    busy = moon.module("apply", files={"net": POLICY | {"dpd": "8s"}})
    assert "XF4021" in busy["msg"]
    assert moon.module("apply", state="rolled_back")["changed"]
    assert not moon.module("apply", state="confirmed")["changed"]
    assert moon.module("apply", files=change, confirm=120)["changed"]
    assert moon.module("apply", state="confirmed")["changed"]
    assert b"9s" in moon.files()["conf.d/net.yaml"]
    assert moon.module("apply", files={"net": POLICY})["changed"]
    assert moon.files() == before


def test_the_play_of_the_page_renders_the_other_end_without_xfrmpy(tmp_path: Path) -> None:
    """By Ansible itself, which finds what the filters import in the collection alone."""
    (play,) = re.findall(r"```yaml\n(- name: What strongSwan.*?)```", PAGE, re.DOTALL)
    end = tmp_path / "office.conf"
    host = {"ansible_connection": "local", "office_key": "a key"}
    text = play.replace("dest: office.conf", f"dest: {end}")
    good(Controller(tmp_path).play(text.replace("hosts: moon", "hosts: gateways"), {"moon": host}))
    assert "remote_addrs = 198.51.100.1\n" in end.read_text()
    assert f"secret = 0x{b'a key'.hex()}\n" in end.read_text()


REMOTE_ACCESS = """
- hosts: moon
  gather_facts: false
  roles: [xfrmpy.gateway.remote_access]
"""


def test_clients_call_the_gateway_with_what_was_delivered_for_them() -> None:
    with Fleet(("moon", "sun")) as fleet:
        moon, sun = fleet.members.values()
        clients = {"alice": {"address": "10.99.0.1"}, "bob": {"address": "10.99.0.2"}}
        delivered = fleet.directory / "clients"
        variables: dict[str, Any] = {
            "remote_access_subnets": ["10.1.0.0/16"],
            "remote_access_gateway": moon.outside,
            "remote_access_deliver": str(delivered),
            "remote_access_clients": clients,
        }

        def play() -> Played:
            return good(fleet.play_text(REMOTE_ACCESS, DIFF, {"moon": variables}))

        made = play()
        key = (delivered / "alice/secrets/client-alice").read_text()
        assert key.strip() not in made.output
        assert changed(play()) == set()

        sun.host.batch("addr add 10.99.0.1/32 dev lo")
        policy = (delivered / "alice/conf.d/moon.yaml").read_text()
        answer = sun.module("apply", files={"moon": policy}, secrets={"client-alice": key.strip()})
        assert answer["changed"], answer
        eventually("alice's tunnel to be up", lambda: "moon" in sun.spis(), seconds=60)
        sun.run("ping", "-n", "-c", "2", "-W", "5", "-I", "10.99.0.1", moon.inside)

        before = moon.spis()
        variables["remote_access_clients"] = {"alice": clients["alice"]}
        assert changed(play()) == {"moon"}
        assert moon.spis() == before
        assert [tunnel.name for tunnel in moon.status().tunnels] == ["client-alice"]
        assert not any("bob" in path for path in moon.files())


def test_strongswan_loads_what_is_rendered_for_it_and_agrees(site: Site) -> None:
    """The policy names no proposals: the other end has those of the profile."""
    tunnel = site.network.tunnel()
    ours = site.xfrmpy(
        site.network.moon, tunnel, ike=None, esp={"proposals": ["aes256gcm16-noesn"]}
    )
    policy = yaml.safe_load((ours.policies / "net0.yaml").read_text())
    end = load_foreign()["swanctl_conf"](policy, "site0", tunnel.ours.public, tunnel.psk)
    theirs = site.strongswan(site.network.sun, configuration=end)
    site.connect(ours, theirs)
    site.assert_protected()
    ours.terminate()
    eventually("strongSwan to be down", lambda: not theirs.is_up())
    theirs.swanctl("--initiate", "--child", "site0", "--timeout", "60")
    eventually("our end to be up", ours.is_up)
    site.assert_protected()

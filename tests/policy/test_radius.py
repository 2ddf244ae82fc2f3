"""Groups of RADIUS servers in policy files: what is wrong with them, with line and fix."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.keypairs import key_pair
from tests.policy.conftest import STRONG
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.ike.kept_policy import read_policies, write_policy
from xfrmpy.policy.changes import Impact, compare_policies
from xfrmpy.policy.load import LoadedPolicy
from xfrmpy.policy.model import EapAcceptance, EapCredential, EapMethod, SharedKey
from xfrmpy.policy.pairing import _of_eap

Load = Callable[..., LoadedPolicy]
Lines = Callable[[LoadedPolicy], list[str]]

SECRET = "secret: secret:key"


def radius(*lines: str, name: str = "corp") -> str:
    return f"radius:\n  {name}:\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(
    "servers",
    [
        "servers: 192.0.2.10",
        "servers: [192.0.2.10, '2001:db8::10']",
        "servers: {address: 192.0.2.10, port: 1645, accounting_port: 1646}",
        "servers: [192.0.2.10, {address: 192.0.2.10, port: 1645}]",
    ],
)
def test_forms(load: Load, servers: str) -> None:
    found = load(**{"radius.yaml": radius(servers, SECRET)})
    assert (found.errors, found.warnings) == ((), ())


@pytest.mark.parametrize(
    ("written", "errors"),
    [
        (
            (SECRET,),
            [
                (
                    "radius.yaml:2:3: XF1005: 'servers' of RADIUS group 'corp' is missing "
                    "(servers: ADDRESS)"
                )
            ],
        ),
        (
            ("servers: 192.0.2.10",),
            [
                (
                    "radius.yaml:2:3: XF1005: the RADIUS server 192.0.2.10 has no 'secret' "
                    "(secret: secret:NAME)"
                )
            ],
        ),
        (
            ("servers: [{port: 1812}]", SECRET),
            [
                (
                    "radius.yaml:3:15: XF1005: 'address' of a RADIUS server is missing "
                    "(address: 192.0.2.10)"
                )
            ],
        ),
        (
            ("servers: [192.0.2.10, 192.0.2.10]", SECRET),
            ["radius.yaml:3:27: XF1004: the RADIUS server 192.0.2.10 is there twice"],
        ),
        (
            ("servers: radius.example.org", SECRET),
            ["radius.yaml:3:14: XF1004: 'servers' must be an IP address, not 'radius.example.org'"],
        ),
        (
            ("servers: 192.0.2.10", "secret: tell-nobody"),
            [
                (
                    "radius.yaml:4:13: XF1010: 'secret' must not hold the secret itself "
                    "(put it into a file and write secret:NAME or file:/PATH)"
                )
            ],
        ),
        (
            ("servers: 192.0.2.10", "secret: secret:none"),
            ["radius.yaml:4:13: XF1008: the secret 'none' is not there (looked for secrets/none)"],
        ),
        (
            ("servers: 192.0.2.10", SECRET, "timout: 1s"),
            ["radius.yaml:5:5: XF1002: unknown key 'timout' (did you mean timeout?)"],
        ),
        (
            ("servers: 192.0.2.10", SECRET, "interim: 10m"),
            [
                (
                    "radius.yaml:5:14: XF1004: 'interim' is about accounting, which is off "
                    "(accounting: yes)"
                )
            ],
        ),
        (
            ("servers: 192.0.2.10", SECRET, "accounting: yes", "interim: 10s"),
            ["radius.yaml:6:14: XF1004: 'interim' must be from 60s to 86400s, not '10s'"],
        ),
        (
            ("servers: [{address: 192.0.2.10, port: 0}]", SECRET),
            ["radius.yaml:3:43: XF1004: 'port' must be a whole number from 1 to 65535, not 0"],
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_a_fix(
    load: Load, lines: Lines, written: tuple[str, ...], errors: list[str]
) -> None:
    found = load(**{"radius.yaml": radius(*written)})
    assert lines(found) == errors
    assert "tell-nobody" not in str(found)


def test_a_group_is_defined_once_in_all_files(load: Load, lines: Lines) -> None:
    text = radius("servers: 192.0.2.10", SECRET)
    found = load(**{"a.yaml": text, "b.yaml": text})
    assert lines(found) == [
        "b.yaml:2:3: XF1006: RADIUS group 'corp' is defined already at a.yaml:2:3"
    ]


GATEWAY = """\
auth:
  local: {id: gw1.example.net, key: secret:gw}
  remote: {eap: EAP}
local: 10.1.0.0/16
remote: 10.2.0.0/16
"""
GROUP = radius("servers: [192.0.2.10, '2001:db8::10']", SECRET, "accounting: yes", "tries: 2")


def gateway(load: Load, eap: str, **files: str) -> LoadedPolicy:
    key = key_pair(KeyKind.ED25519).pem()
    return load(
        **{
            "../secrets/gw": key,
            "radius.yaml": GROUP,
            "home.yaml": GATEWAY.replace("EAP", eap),
            **files,
        }
    )


def accepted(found: LoadedPolicy) -> EapAcceptance:
    assert found.errors == ()
    (policy,) = found.tunnels
    assert policy.remote_eap is not None
    return policy.remote_eap


def test_a_tunnel_has_the_servers_that_know_its_users(load: Load) -> None:
    found = accepted(gateway(load, "{radius: corp, groups: [staff, admins], identities: '*@a'}"))
    group = found.radius
    assert group is not None
    assert [str(server.address) for server in group.servers] == ["192.0.2.10", "2001:db8::10"]
    assert {(server.port, server.accounting_port) for server in group.servers} == {(1812, 1813)}
    assert (group.accounting, group.tries, group.wait_seconds) == (True, 2, 2.0)
    assert found.admits(b"alice@a", ("staff",))
    assert not found.admits(b"alice@a", ("guests",))
    assert not found.admits(b"alice@a")
    assert not found.admits(b"alice@b", ("staff",))
    assert STRONG.strip() not in repr(found)


@pytest.mark.parametrize(
    ("eap", "error"),
    [
        (
            "{radius: crop}",
            "3:26: XF1004: the RADIUS group 'crop' is defined nowhere (did you mean corp?)",
        ),
        (
            "{radius: corp, methods: md5}",
            (
                "3:32: XF1004: 'methods' is not ours to say: the servers of 'radius' decide "
                "(leave it out)"
            ),
        ),
        (
            "{radius: corp, alone: yes}",
            (
                "3:32: XF1004: 'alone' is not ours to say: the servers of 'radius' decide "
                "(leave it out)"
            ),
        ),
        (
            "{users: secret:users, groups: staff}",
            (
                "3:39: XF1004: 'groups' are those of a RADIUS server, and 'users' has none "
                "(leave it out)"
            ),
        ),
    ],
)
def test_what_does_not_go_together_is_told(load: Load, lines: Lines, eap: str, error: str) -> None:
    found = gateway(load, eap, **{"../secrets/users": "carol: horse\n"})
    assert lines(found) == [f"home.yaml:{error}"]


def test_a_tunnel_whose_servers_have_an_error_is_left_out(load: Load, lines: Lines) -> None:
    broken = radius("servers: 192.0.2.10")
    found = gateway(load, "{radius: corp}", **{"radius.yaml": broken})
    assert found.tunnels == ()
    assert lines(found)[0] == "home.yaml:3:26: XF1004: the RADIUS group 'corp' has an error"


def test_other_servers_are_a_change_that_ends_nothing(load: Load) -> None:
    found = gateway(load, "{radius: corp}")
    (before,) = found.tunnels
    assert before.remote_eap is not None
    assert before.remote_eap.radius is not None
    (server, _) = before.remote_eap.radius.servers
    other = replace(server, secret=replace(server.secret, octets=b"another secret!!"))
    group = replace(before.remote_eap.radius, servers=(other,))
    after = replace(before, remote_eap=replace(before.remote_eap, radius=group))
    (change,) = compare_policies([before], [after])
    assert change.impact is Impact.HOT
    shown = str(change.differences)
    assert "192.0.2.10:1812" in shown
    assert "another secret" not in shown
    assert STRONG.strip() not in shown


def test_whether_a_user_is_one_is_left_to_the_servers_by_check_too(load: Load) -> None:
    (policy,) = gateway(load, "{radius: corp}").tunnels
    mschapv2 = EapCredential(
        identity="carol",
        methods=(EapMethod.MSCHAPV2,),
        password=SharedKey(octets=b"horse", origin="carol"),
    )
    assert list(_of_eap(mschapv2, policy.remote_eap, is_ours=False)) == []
    assert list(_of_eap(None, policy.remote_eap, is_ours=False)) != []


def test_what_is_kept_of_a_policy_has_no_secret_of_a_server(load: Load) -> None:
    (policy,) = gateway(load, "{radius: corp}").tunnels
    record = write_policy(policy, bytes(16))
    for form in (STRONG.strip().encode(), STRONG.strip().encode().hex().encode()):
        assert form not in record
    (kept,) = read_policies({b"policy of home": record}).values()
    assert kept.policy.remote_eap is not None
    assert kept.policy.remote_eap.radius is None
    assert kept.beside(policy) == policy


def test_a_short_secret_is_warned_of(load: Load) -> None:
    text = radius("servers: 192.0.2.10", "secret: secret:short")
    found = load(**{"a.yaml": text, "../secrets/short": "short"})
    assert [warning.code for warning in found.warnings] == ["XF1015"]


def test_servers_without_the_extra(
    load: Load, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyrad", None)
    found = load(**{"radius.yaml": radius("servers: 192.0.2.10", SECRET)})
    (error,) = lines(found)
    assert error.startswith("radius.yaml:2:3: XF1044: this needs the Python package 'pyrad', ")
    assert error.endswith("(install xfrmpy[radius])")

"""Post-quantum preshared keys in policy files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from xfrmpy.policy.changes import Impact, compare_policies
from xfrmpy.policy.load import LoadedPolicy

Load = Callable[..., LoadedPolicy]
Lines = Callable[[LoadedPolicy], list[str]]

TUNNEL = """\
peer: vpn.example.org
id: gw1.example.net
psk: secret:key
local: 10.1.0.0/16
remote: 10.2.0.0/16
"""
STRONG = "0s" + "A" * 43 + "=\n"


def loaded(load: Load, ppk: str, **secrets: str) -> LoadedPolicy:
    files = {"../secrets/q1": STRONG, "../secrets/q2": STRONG} | {
        f"../secrets/{name}": content for name, content in secrets.items()
    }
    return load(**files, **{"office.yaml": TUNNEL + ppk})


def test_a_tunnel_has_none_by_default(load: Load) -> None:
    (policy,) = loaded(load, "").tunnels
    assert policy.ppks == ()
    assert not policy.ppk_required


@pytest.mark.parametrize(
    "proof",
    [
        "auth: {psk: secret:key, local: {eap: CAROL}}",
        "auth: {psk: secret:key, then: [{local: {eap: CAROL}}]}",
    ],
)
def test_users_of_eap_and_hosts_with_several_rounds_have_one(load: Load, proof: str) -> None:
    proof = proof.replace("CAROL", "{identity: carol, password: secret:carol}")
    text = TUNNEL.replace("psk: secret:key", proof).replace("id: gw1.example.net\n", "")
    files = {"../secrets/q1": STRONG, "../secrets/carol": "correct horse\n"}
    found = load(**files, **{"office.yaml": f"{text}ppk: {{secret: secret:q1, required: yes}}\n"})
    assert found.errors == ()
    (policy,) = found.tunnels
    assert [ppk.id for ppk in policy.ppks] == ["q1"]
    assert policy.ppk_required


@pytest.mark.parametrize(
    ("ppk", "ids", "required"),
    [
        ("ppk: secret:q1\n", [b"q1"], False),
        ("ppk: {secret: secret:q1, id: office-2026}\n", [b"office-2026"], False),
        ("ppk: {secret: secret:q1, id: '0x00FF', required: yes}\n", [b"\x00\xff"], True),
        ("ppk: {secret: secret:q1, id: Zürich}\n", ["Zürich".encode()], False),
        ("ppk: [secret:q1, {secret: secret:q2, required: yes}]\n", [b"q1", b"q2"], True),
    ],
)
def test_forms(load: Load, ppk: str, ids: list[bytes], required: bool) -> None:
    found = loaded(load, ppk)
    assert (found.errors, found.warnings) == ((), ())
    (policy,) = found.tunnels
    assert [p.id_octets for p in policy.ppks] == ids
    assert {p.key.octets for p in policy.ppks} == {bytes(32)}
    assert policy.ppk_required is required


@pytest.mark.parametrize(
    ("ppk", "message"),
    [
        ("ppk: the secret itself\n", "6:6: XF1010: 'ppk' must not hold the secret itself"),
        ("ppk: secret:q3\n", "6:6: XF1008: the secret 'q3' is not there"),
        ("ppk: {id: office}\n", "XF1005: 'secret' of 'ppk' is missing"),
        ("ppk: {secret: file:/etc/ppk}\n", "XF1005: 'id' of 'ppk' is missing"),
        ("ppk: {secret: secret:q1, id: 0x123}\n", "XF1004"),
        ("ppk: {secret: secret:q1, id: '0x12 '}\n", "6:30: XF1004: 'id' must have pairs"),
        ("ppk: {secret: secret:q1, id: ''}\n", "6:30: XF1004: 'id' must have 1 to"),
        ("ppk: {secret: secret:q1, idd: x}\n", "6:26: XF1002: unknown key 'idd'"),
        ("ppk: [secret:q1, secret:q1]\n", "XF1004: 'id' of 'ppk': 'q1' is there twice"),
        ("ppk: []\n", "6:6: XF1004: 'ppk' must have 1 to 255 items"),
        ("ppk:\n", "XF1004: 'ppk' has no value"),
        ("ppk: {secret: secret:q1, required: maybe}\n", "XF1004: 'required' must be yes or no"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    load: Load, lines: Lines, ppk: str, message: str
) -> None:
    (line,) = lines(loaded(load, ppk))
    assert line.startswith("office.yaml:")
    assert message in line
    assert "itself" in line or "the secret itself" not in line


def test_one_that_a_quantum_computer_could_guess_is_warned_of(load: Load) -> None:
    found = loaded(load, "ppk: secret:weak\n", weak="0123456789abcdef0123456789abcde\n")
    (warning,) = found.warnings
    assert warning.code == "XF1015"
    assert len(found.tunnels) == 1


def test_a_change_is_a_new_authentication_and_shows_no_octet(load: Load) -> None:
    (before,) = loaded(load, "ppk: secret:q1\n").tunnels
    other = replace(before.ppks[0], key=replace(before.ppks[0].key, octets=b"x" * 32))
    (change,) = compare_policies([before], [replace(before, ppks=(other,), ppk_required=True)])
    assert change.impact is Impact.REAUTH
    assert [d.key for d in change.differences] == ["ppk", "ppk.required"]
    assert change.differences[0].after.endswith("with another value")
    assert "xxxx" not in repr(change)

"""Groups of RADIUS servers in policy files: what is wrong with them, with line and fix."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xfrmpy.policy.load import LoadedPolicy

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


def test_a_short_secret_is_warned_of(load: Load) -> None:
    text = radius("servers: 192.0.2.10", "secret: secret:short")
    found = load(**{"a.yaml": text, "../secrets/short": "short"})
    assert [warning.code for warning in found.warnings] == ["XF1015"]

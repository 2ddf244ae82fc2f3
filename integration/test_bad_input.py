"""What goes wrong for an operator: each with its own code, its exit code, and evidence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from integration.lab.gateway import XFRMPY, Answer, ask, kernel_has_esp
from integration.lab.process import eventually
from integration.lab.site import Site

pytestmark = pytest.mark.native

GOOD_IKE = "aes128gcm16-prfsha256-x25519"


def refused(answer: Answer, code: str, exit_code: int, *evidence: str) -> None:
    """The command failed with this code, and its words hold the evidence and something to do."""
    assert (answer.code, code in answer.errors) == (exit_code, True), answer
    for words in (*evidence, "what to do"):
        assert words in answer.errors


@pytest.mark.parametrize(
    ("terms", "code", "evidence"),
    [
        ({"psk": "something else altogether"}, "XF2005", "AUTHENTICATION_FAILED"),
        ({"ike": "aes256gcm16-prfsha384-x25519"}, "XF2002", GOOD_IKE),
        ({"ike": "aes128gcm16-prfsha256-ecp384"}, "XF2002", "NO_PROPOSAL_CHOSEN"),
        ({"esp": "aes256gcm16-noesn"}, "XF2003", "aes128gcm16"),
    ],
    ids=["key", "ike", "group", "esp"],
)
def test_a_peer_with_other_terms_refuses(
    site: Site, terms: dict[str, Any], code: str, evidence: str
) -> None:
    network = site.network
    site.strongswan(network.sun, replace(network.tunnel(), **terms).mirrored())
    ours = site.xfrmpy(network.moon, network.tunnel())
    refused(ours.command("up", "net0"), code, 5, evidence)
    assert not ours.is_up()


def test_a_peer_with_other_selectors_refuses(site: Site) -> None:
    network = site.network
    other = network.tunnel().between(("10.1.8.0/24",), ("10.2.8.0/24",))
    site.strongswan(network.sun, other.mirrored())
    ours = site.xfrmpy(network.moon, network.tunnel())
    refused(ours.command("up", "net0"), "XF2004", 5, "10.1.0.0/24", "10.2.0.0/24")


def test_as_responder_we_refuse_other_selectors_and_say_why(site: Site) -> None:
    network = site.network
    other = network.tunnel().between(("10.1.8.0/24",), ("10.2.8.0/24",))
    theirs = site.strongswan(network.sun, other.mirrored())
    ours = site.xfrmpy(network.moon, network.tunnel())
    assert "TS_UNACCEPTABLE" in theirs.swanctl("--initiate", "--child", "net0", check=False)
    eventually("the log to say why", lambda: "XF2004" in ours.log)
    assert not ours.tunnel().children


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"psk": "something else altogether"}, "XF2006"),
        ({"ike": "aes256gcm16-prfsha384-x25519"}, "XF2002"),
        ({"esp": "aes256gcm16-noesn"}, "XF2003"),
    ],
    ids=["key", "ike", "esp"],
)
def test_as_responder_we_refuse_other_terms_and_say_why(
    site: Site, terms: dict[str, Any], code: str
) -> None:
    network = site.network
    theirs = site.strongswan(network.sun, replace(network.tunnel(), **terms).mirrored())
    ours = site.xfrmpy(network.moon, network.tunnel())
    with pytest.raises(AssertionError, match="initiate failed"):
        theirs.initiate()
    eventually("the log to say why", lambda: code in ours.log)
    assert not ours.is_up()


def test_a_peer_who_calls_itself_otherwise_is_refused(site: Site) -> None:
    network = site.network
    site.strongswan(network.sun, network.tunnel().mirrored())
    ours = site.xfrmpy(network.moon, network.tunnel(), peer_id="venus.example.net")
    answer = ours.command("up", "net0")
    assert (answer.code, "XF2005" in answer.errors or "XF2007" in answer.errors) == (5, True)


def test_a_silent_peer_is_given_up(site: Site) -> None:
    site.network.sun.drop("udp dport { 500, 4500 }")
    patience = {"tries": 1, "initial": "200ms"}
    ours = site.xfrmpy(site.network.moon, site.network.tunnel(), retransmission=patience)
    refused(ours.command("up", "net0"), "XF2001", 4, "192.0.2.2")


def test_waiting_may_end_before_the_daemon_gives_up(site: Site) -> None:
    site.network.sun.drop("udp dport { 500, 4500 }")
    ours = site.xfrmpy(site.network.moon, site.network.tunnel())
    refused(ours.command("up", "--timeout", "1", "net0"), "XF4007", 4)


def test_a_name_that_nobody_knows_is_not_resolved(site: Site) -> None:
    ours = site.xfrmpy(site.network.moon, site.network.tunnel(), peer="nobody.invalid")
    refused(ours.command("up", "net0"), "XF2012", 1, "nobody.invalid")


def test_an_unknown_tunnel_is_said_to_be(site: Site) -> None:
    ours = site.xfrmpy(site.network.moon, site.network.tunnel())
    refused(ours.command("up", "office"), "XF1013", 64, "office", "net0")


def test_a_tunnel_without_a_peer_cannot_be_called(site: Site) -> None:
    ours = site.xfrmpy(site.network.moon, site.network.tunnel(), peer=None, start="listen")
    refused(ours.command("up", "net0"), "XF1014", 64, "net0")


def test_a_tunnel_that_is_taken_down_while_it_comes_up_says_so(site: Site) -> None:
    site.network.sun.drop("udp dport { 500, 4500 }")
    ours = site.xfrmpy(site.network.moon, site.network.tunnel())
    with ThreadPoolExecutor() as pool:
        coming_up = pool.submit(ours.command, "up", "net0")
        eventually("a first request", lambda: "IKE_SA_INIT" in ours.log)
        assert ours.command("down", "net0").code == 0
        refused(coming_up.result(), "XF4009", 1)


def test_a_datapath_that_this_kernel_has_not_is_refused(site: Site) -> None:
    if kernel_has_esp(site.network.alice):
        pytest.skip("this kernel has ESP")
    ours = site.xfrmpy(site.network.moon, site.network.tunnel(), datapath="kernel")
    refused(ours.command("up", "net0"), "XF3001", 78, "esp4")


def test_a_second_daemon_is_refused(site: Site) -> None:
    ours = site.xfrmpy(site.network.moon, site.network.tunnel())
    answer = ours.command("daemon")
    assert (answer.code, "XF4004" in answer.errors) == (1, True)
    assert ours.is_running()


def test_a_taken_port_names_who_holds_it(site: Site) -> None:
    theirs = site.strongswan(site.network.moon, site.network.tunnel())
    answer = daemon_alone(site)
    assert (answer.code, "XF4002" in answer.errors) == (78, True)
    assert "charon" in answer.errors
    theirs.stop()


def test_a_daemon_without_privilege_is_told_so(site: Site) -> None:
    answer = daemon_alone(site, "setpriv", "--bounding-set=-all", "--inh-caps=-all")
    assert (answer.code, "XF4003" in answer.errors) == (77, True)


def daemon_alone(site: Site, *wrapper: str) -> Answer:
    """A daemon started at moon, with no policy, that is to end by itself."""
    environment = {
        "XFRMPY_CONFIG_PATH": str(site.directory / "none"),
        "XFRMPY_RUNTIME_DIR": str(site.directory / "run"),
    }
    return ask(site.network.moon.command(*wrapper, XFRMPY, "daemon"), environment)


@pytest.mark.parametrize("command", [["up", "net0"], ["down", "net0"], ["status"]])
def test_a_command_without_a_daemon_says_so(tmp_path: Path, command: list[str]) -> None:
    answer = ask((XFRMPY, *command), {"XFRMPY_RUNTIME_DIR": str(tmp_path)})
    refused(answer, "XF4001", 69, str(tmp_path))


POLICY = {
    "peer": "192.0.2.2",
    "id": "moon.example.net",
    "psk": "secret:net",
    "local": "10.1.0.0/24",
    "remote": "10.2.0.0/24",
}


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("peer: [", "XF1001", "begins at 1:7"),
        ("per: 192.0.2.2", "XF1002", "peer"),
        ("peer: 192.0.2.2\npeer: 192.0.2.3", "XF1003", "net.yaml:2:1"),
        ("local: 10.1.0.0/33", "XF1004", "net.yaml:"),
        ("remote:", "XF1004", "remote"),
        ("psk: file:/nowhere/at/all", "XF1008", "/nowhere/at/all"),
        ("psk: file:{open}", "XF1009", "0644"),
        ("psk: a secret that stands in the policy", "XF1010", "net.yaml:"),
        ("traffic: tcp/5432", "XF1011", "traffic"),
    ],
)
def test_a_bad_policy_is_told_with_its_place(
    tmp_path: Path, text: str, code: str, words: str
) -> None:
    (tmp_path / "open").write_text("a key that everybody may read")
    (tmp_path / "open").chmod(0o644)
    answer = check(tmp_path, text.replace("{open}", str(tmp_path / "open")))
    assert answer.code == 65
    assert code in answer.output + answer.errors
    assert words in answer.output + answer.errors
    assert "stands in the policy" not in answer.output


def test_two_tunnels_for_the_same_traffic_are_told_with_both_places(tmp_path: Path) -> None:
    write_policy(tmp_path, "other", "peer: 192.0.2.3")
    answer = check(tmp_path, "")
    assert (answer.code, "XF1007" in answer.output + answer.errors) == (65, True)
    for place in ("net.yaml", "other.yaml"):
        assert place in answer.output + answer.errors


def check(directory: Path, text: str) -> Answer:
    """`check` of a policy that would be good but for the keys of `text`."""
    write_policy(directory, "net", text)
    return ask((XFRMPY, "check", str(directory / "conf.d")), {})


def write_policy(directory: Path, name: str, text: str) -> None:
    (directory / "conf.d").mkdir(exist_ok=True)
    (directory / "secrets").mkdir(mode=0o700, exist_ok=True)
    secret = directory / "secrets/net"
    secret.touch(0o600)
    secret.write_text("correct horse battery staple, and then some\n")
    given = {line.partition(":")[0] for line in text.splitlines()}
    rest = [f"{key}: {value}" for key, value in POLICY.items() if key not in given]
    (directory / "conf.d" / f"{name}.yaml").write_text("\n".join([*text.splitlines(), *rest, ""]))

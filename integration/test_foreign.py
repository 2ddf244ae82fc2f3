"""`xfrmpy export` and `import`: the daemons of others run what we write, and we what they ran."""

from __future__ import annotations

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.process import eventually
from integration.lab.site import Site
from integration.lab.tunnel import Tunnel

ESP = {"proposals": ["aes256gcm16-x25519-noesn"]}


def exported(ours: XfrmpyGateway, kind: str, tunnel: Tunnel) -> tuple[str, str]:
    """The other end's configuration and its secrets."""
    command = ("export", "net0", "--for", kind, "--address", tunnel.ours.public)
    answers = [ours.command(*command), ours.command(*command, "--secrets")]
    assert [answer.code for answer in answers] == [0, 0], answers
    return answers[0].output, answers[1].output


def assert_moved(site: Site, ours: XfrmpyGateway, file: str) -> None:
    """An xfrmpy at sun brings the tunnel up by what it has imported from its predecessor."""
    moved = site.xfrmpy(site.network.sun)
    into = moved.policies.parent
    answer = moved.command("import", file, "--into", str(into))
    assert answer.code == 0, answer
    assert "1 tunnel carried over" in answer.errors
    answer = moved.command("apply", "--allow-pending")
    assert answer.code == 0, answer
    moved.initiate()
    eventually("our end to be up", ours.is_up)
    site.assert_protected()


@pytest.mark.native
def test_strongswan_runs_what_is_exported_and_xfrmpy_what_is_imported_from_it(site: Site) -> None:
    tunnel = site.network.tunnel()
    ours = site.xfrmpy(site.network.moon, tunnel, ike=None, esp=ESP)
    configuration = "".join(exported(ours, "strongswan", tunnel))
    theirs = site.strongswan(site.network.sun, configuration=configuration)
    ours.initiate()
    site.assert_protected()
    ours.terminate()
    theirs.swanctl("--initiate", "--child", "net0", "--timeout", "60")
    eventually("our end to be up", ours.is_up)
    site.assert_protected()
    theirs.swanctl("--terminate", "--ike", "net0", "--timeout", "60")
    theirs.stop()
    file = site.directory / "swanctl.conf"
    file.write_text(configuration)
    assert_moved(site, ours, str(file))


@pytest.mark.vm
def test_libreswan_runs_what_is_exported_and_xfrmpy_what_is_imported_from_it(site: Site) -> None:
    tunnel = site.network.tunnel()
    ours = site.xfrmpy(site.network.moon, tunnel, ike=None, esp=ESP)
    texts = exported(ours, "libreswan", tunnel)
    theirs = site.libreswan(site.network.sun, configuration=texts)
    ours.initiate()
    eventually("libreswan to be up", theirs.is_up)
    site.assert_protected()
    theirs.terminate()
    eventually("our end to be down", lambda: not ours.is_up())
    theirs.stop()
    for name, text in zip(("ipsec.conf", "ipsec.secrets"), texts, strict=True):
        (site.directory / name).write_text(text)
    assert_moved(site, ours, str(site.directory / "ipsec.conf"))

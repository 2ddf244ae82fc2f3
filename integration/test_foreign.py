"""`xfrmpy export` and `import`: the daemons of others run what we write, and we what they ran."""

from __future__ import annotations

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.process import eventually
from integration.lab.site import Site
from integration.lab.tunnel import Tunnel
from xfrmpy.policy.foreign.exporting import other_end
from xfrmpy.policy.foreign.ipsec_conf import import_ipsec_conf
from xfrmpy.policy.foreign.rendering import ipsec_conf, ipsec_secrets
from xfrmpy.policy.foreign.syntax import Text, parse_ipsec_conf, parse_ipsec_secrets
from xfrmpy.policy.load import load_policy

ESP = {"proposals": ["aes256gcm16-x25519-noesn"]}


def exported(ours: XfrmpyGateway, tunnel: Tunnel) -> str:
    """The other end's configuration with its secret."""
    command = ("export", "net0", "--for", "strongswan", "--address", tunnel.ours.public)
    answers = [ours.command(*command), ours.command(*command, "--secrets")]
    assert [answer.code for answer in answers] == [0, 0], answers
    return "".join(answer.output for answer in answers)


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
    configuration = exported(ours, tunnel)
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
def test_libreswan_runs_what_is_exported(site: Site) -> None:
    """In one process: commands are slow to start in the emulated machine."""
    tunnel = site.network.tunnel()
    ours = site.xfrmpy(site.network.moon, tunnel, ike=None, esp=ESP)
    end = other_end(load_policy([ours.policies]).tunnels[0], tunnel.ours.public)
    texts = ipsec_conf(end), ipsec_secrets(end)
    theirs = site.libreswan(site.network.sun, configuration=texts)
    ours.initiate()
    eventually("libreswan to be up", theirs.is_up)
    site.assert_protected()
    files = [Text(name=name, content=text) for name, text in zip("cs", texts, strict=True)]
    conf = parse_ipsec_conf(files[0], lambda _pattern, _within: ())
    keys = parse_ipsec_secrets(files[1], lambda _pattern, _within: ())
    imported = import_ipsec_conf(conf, keys).tunnels["net0"]
    assert (imported["peer"], imported["peer_id"]) == (tunnel.ours.public, tunnel.ours.id)

"""`xfrmpy export` and `import`: the daemons of others run what we write, and we what they ran."""

from __future__ import annotations

import pytest

from integration.lab.authority import Hierarchy, key_pem, pem, signed, write_credentials
from integration.lab.gateway import XfrmpyGateway
from integration.lab.process import eventually
from integration.lab.site import Site
from integration.lab.tunnel import Tunnel
from tests.cli.test_foreign_proofs import told_files
from xfrmpy.policy.foreign.exporting import other_end
from xfrmpy.policy.foreign.ipsec_conf import import_ipsec_conf
from xfrmpy.policy.foreign.rendering import ipsec_conf, ipsec_secrets
from xfrmpy.policy.foreign.syntax import Text, parse_ipsec_conf, parse_ipsec_secrets
from xfrmpy.policy.load import load_policy

MOON, SUN = "moon.example.net", "sun.example.net"
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


def signing(site: Site, ours: Hierarchy, theirs: Hierarchy) -> XfrmpyGateway:
    """An xfrmpy at moon by a certificate of ours, and sun by one of theirs."""
    place = site.directory / "moon-certs"
    write_credentials(place, ours.gateway(MOON), ours.issuing, ours.root, anchor=theirs.root)
    policy = signed(place, MOON, SUN)
    return site.xfrmpy(site.network.moon, site.network.tunnel(), **policy, ike=None, esp=ESP)


@pytest.mark.native
def test_strongswan_runs_what_is_exported_of_certificates_and_xfrmpy_what_it_ran(
    site: Site,
) -> None:
    ours, theirs = Hierarchy.of("p256"), Hierarchy.of("ed25519")
    gateway = signing(site, ours, theirs)
    address = site.network.tunnel().ours.public
    answer = gateway.command("export", "net0", "--for", "strongswan", "--address", address)
    assert answer.code == 0, answer
    leaf = theirs.gateway(SUN)
    files = {
        **told_files(answer.output),
        "x509/net0.pem": pem(leaf),
        "x509ca/issuing.pem": pem(theirs.issuing),
        "pkcs8/net0.pem": key_pem(leaf),
    }
    peer = site.strongswan(site.network.sun, configuration=answer.output, files=files)
    gateway.initiate()
    site.assert_protected()
    gateway.terminate()
    peer.swanctl("--initiate", "--child", "net0", "--timeout", "60")
    eventually("our end to be up", gateway.is_up)
    site.assert_protected()
    peer.swanctl("--terminate", "--ike", "net0", "--timeout", "60")
    peer.stop()
    place = site.directory / "swanctl"
    told = answer.output.replace("cacerts =", "revocation = relaxed\n cacerts =")
    chain = {"x509/net0.pem": pem(leaf, theirs.issuing)}
    for name, content in {"swanctl.conf": told.encode(), **files, **chain}.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        path.write_bytes(content)
    assert_moved(site, gateway, str(place / "swanctl.conf"))


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

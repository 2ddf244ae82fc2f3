"""A key on a token of softhsm2, for a daemon in the sandbox of its unit, by what the page says."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import yaml

from integration.lab.gateway import DATAPATH
from integration.lab.keys import make_key
from integration.lab.process import PATIENCE
from integration.lab.site import Site
from integration.lab.softhsm import PIN, SO_PIN
from integration.lab.systemd import Machine
from integration.lab.tunnel import Tunnel
from tests.documentation import blocks, text_of

pytestmark = pytest.mark.native

PAGE = "docs/tokens.md"
UNITS = ("xfrmpyd.service", "xfrmpy-block.service")


def commands(*programs: str) -> str:
    """Those of the page that run one of these, in their order."""
    shown = (c.text for b in blocks(PAGE) if b.language == "console" for c in b.commands())
    return "\n".join(text for text in shown if text.split()[0] in programs)


def drop_ins() -> dict[str, str]:
    """That of the page, and the same for the other unit, as it says."""
    (shown,) = (block for block in blocks(PAGE) if block.language == "ini")
    assert "the same beside `xfrmpy-block.service`" in text_of(PAGE)
    return {shown.name.replace(UNITS[0], unit): shown.text for unit in UNITS}


def policy(tunnel: Tunnel) -> dict[str, Any]:
    """The page's, with who is there, and with something to block at boot."""
    (example,) = (block for block in blocks(PAGE) if block.language == "yaml")
    keys = yaml.safe_load(example.text)["tunnels"]["branch"]
    assert tunnel.theirs.key is not None
    auth = {
        "local": {**keys["auth"]["local"], "id": tunnel.ours.id},
        "remote": {"id": tunnel.theirs.id, "key": "file:/etc/xfrmpy/sun.pub"},
    }
    return {
        "peer": tunnel.theirs.public,
        "auth": auth,
        "local": [*tunnel.ours.subnets],
        "remote": [*tunnel.theirs.subnets],
        "ike": {"proposals": [tunnel.ike]},
        "esp": {"proposals": [tunnel.esp]},
        "datapath": DATAPATH,
        "on_down": "block",
    }


def test_a_token_signs_for_a_daemon_in_its_sandbox(site: Site) -> None:
    """Without the drop-in neither unit can read the token; traffic is blocked all the same."""
    ours, theirs = (make_key(site.directory, "ed25519", name) for name in ("moon", "sun"))
    tunnel = site.network.tunnel().signed(ours, theirs)
    site.xfrmpy(site.network.sun, tunnel.mirrored())
    files = {
        "/root/ike.pem": ours.private.read_text(),
        "/etc/xfrmpy/sun.pub": theirs.public.read_text(),
        "/etc/xfrmpy/secrets/gw1.pin": PIN + "\n",
        "/etc/xfrmpy/conf.d/branch.yaml": yaml.safe_dump(policy(tunnel)),
    }
    given = f"--pin {shlex.quote(PIN)}"
    token = commands("softhsm2-util")
    token = token.replace("--init-token", f"--init-token --so-pin {shlex.quote(SO_PIN)} {given}")
    token = token.replace("--import", f"{given} --import")
    with Machine(site.network.moon, site.directory, files) as machine:
        machine.must("sh", "-ec", f"cd /root\n{token}")
        assert machine.run("systemctl", "start", "xfrmpy-block").code != 0
        assert "XF1045" in machine.must("journalctl", "--unit=xfrmpy-block")
        assert "drop" in machine.must("nft", "list", "table", "inet", "xfrmpy-block")
        for path, text in drop_ins().items():
            machine.must("mkdir", "-p", path.rpartition("/")[0])
            machine.write(path, text)
        machine.must("sh", "-ec", commands("chown", "systemctl"))
        up = machine.xfrmpy("up", "branch", "--timeout", f"{30 * PATIENCE:g}")
        assert up.code == 0, up
        assert machine.shown("xfrmpy-block", "ActiveState") == "active"
        site.assert_protected()
        assert PIN not in machine.must("journalctl")

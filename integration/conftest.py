"""Where each integration test runs, what it finds there, and what a failure shows.

`native`: on the machine itself, network namespaces and the userspace datapath; needs root.
`vm`: inside `integration/lab/kernel-vm`, whose kernel has ESP. A test may bear both marks.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator, Iterator
from contextlib import closing

import pytest
from _pytest._code.code import ExceptionRepr

pytest.register_assert_rewrite("integration.lab", "integration.contract", "integration.userspace")

from integration.contract.sites import gateway_namespace  # noqa: E402 - after the line above
from integration.lab.process import IN_VM  # noqa: E402
from integration.lab.site import Site  # noqa: E402
from xfrmpy.datapath.kernel.datapath import KernelDatapath  # noqa: E402

HERE = "vm" if IN_VM else "native"

MODULES = (
    "esp4 esp6 xfrm_user xfrm_interface udp_tunnel ip6_udp_tunnel tun veth bridge "
    "ipcomp ipcomp6 xfrm4_tunnel xfrm6_tunnel deflate "
    "gcm seqiv echainiv authenc authencesn cbc ctr hmac cryptd drbg jitterentropy_rng "
    "chacha20poly1305 chacha_generic poly1305_generic "
    "aesni_intel ghash_clmulni_intel sha256_ssse3 sha512_ssse3 nf_tables nft_chain_nat nft_masq "
    "nft_nat nft_ct nft_numgen"
)
"""Loaded beforehand: left to the kernel's own requests, they delay an exchange by seconds."""


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.geteuid() != 0:
        pytest.exit("the integration tests make network namespaces: they need root", returncode=4)
    if IN_VM and not session.config.option.collectonly:
        # Not every kernel has every one of them as a module.
        subprocess.run(["modprobe", "-qa", *MODULES.split()], check=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        places = [
            mark.name
            for node in item.listchain()
            for mark in node.own_markers
            if mark.name in {"native", "vm"}
        ]
        if not places:
            raise pytest.UsageError(f"{item.nodeid} bears neither mark: native, vm")
        if len(places) != len({*places}):
            raise pytest.UsageError(f"{item.nodeid} is marked as its module is, without effect")
    elsewhere = [item for item in items if item.get_closest_marker(HERE) is None]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call" and report.failed:
        for value in getattr(item, "funcargs", {}).values():
            site = getattr(value, "site", value)
            if isinstance(site, Site) and isinstance(report.longrepr, ExceptionRepr):
                # With the traceback, which a second attempt does not take from the report.
                for name, text in site.log_tails():
                    report.longrepr.addsection(name, text)
    return report


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Two sites; a test marked `nat` names the gateways behind NAT routers, or means moon.

    Of tests marked `copied`, whose matter is the protocol, processes begin as copies natively, too;
    not of those marked `copied(False)`, which the marks of their modules do not befit.
    """
    mark = request.node.get_closest_marker("nat")
    copying = request.node.get_closest_marker("copied")
    copied = IN_VM or (copying is not None and copying.args != (False,))
    with Site(nat=() if mark is None else mark.args or ("moon",), copied=copied) as laboratory:
        yield laboratory


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    """A namespace with a gateway's addresses, which the tests of a module share and are in."""
    with gateway_namespace() as name:
        yield name


@pytest.fixture
def datapath(gateway: str) -> Iterator[KernelDatapath]:
    """That of the kernel there, with nothing of ours in it before or afterwards."""
    del gateway
    with closing(KernelDatapath.open()) as opened:
        yield opened
        opened.remove_ours()

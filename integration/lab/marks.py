"""Marks that several test files bear: which peers, in which roles."""

from __future__ import annotations

import pytest

from integration.lab.site import Role, Site

BOTH_ROLES = pytest.mark.parametrize("role", list(Role))

LIBRESWAN = pytest.param(Site.libreswan, marks=pytest.mark.vm, id="libreswan")
"""It has no ESP of its own, so it is met in the virtual machine alone."""

PEERS = pytest.mark.parametrize(
    "make_peer",
    [
        pytest.param(Site.strongswan, marks=[pytest.mark.native, pytest.mark.vm], id="strongswan"),
        LIBRESWAN,
    ],
)
"""How a site makes its other gateway; strongSwan natively too, both in user space there."""

PEERS_ONCE = pytest.mark.parametrize(
    "make_peer",
    [pytest.param(Site.strongswan, marks=pytest.mark.native, id="strongswan"), LIBRESWAN],
)
"""For what is IKE alone: each peer in one place."""

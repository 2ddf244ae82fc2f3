"""What only some kernels have, as it goes to the kernel: the octets of <linux/xfrm.h>."""

from __future__ import annotations

from typing import Any

import pytest

from xfrmpy.datapath.kernel import features
from xfrmpy.datapath.kernel.features import FEATURES, Feature
from xfrmpy.datapath.kernel.messages import XFRM, Attribute
from xfrmpy.datapath.netlink.messages import split_attributes

OCTETS = {
    "marks": {21: "05000000ff000000"},
    "TFC padding": {22: "78050000"},
    "DSCP not copied": {24: "01000000"},
    "masked output marks": {30: "ffff0000"},
    "interface ids": {31: "07000000"},
    "sequence numbers that wrap": {24: "02000000"},
    "mapping changes told rarely": {32: "0a000000"},
    "SAs of one direction": {33: "02"},
    "NAT keepalives by the kernel": {34: "14000000"},
    "SAs of one CPU (RFC 9611)": {35: "00000000"},
    "IP-TFS (RFC 9347)": {38: "", 39: "64000000", 40: "00001000", 41: "78050000"},
    "IP-TFS, received": {36: "e8030000", 37: "0300"},
}
"""Of a little-endian host, by the attributes' numbers: u32 but for SA_DIR (u8), the reorder window
(u16) and DONT_FRAG (a flag)."""


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_laid_out_as_the_header_says(name: str) -> None:
    message = features.sample(FEATURES[name])
    octets = XFRM.encode(message)
    sent = split_attributes(octets[XFRM.bodies[message.type].size :])
    told = {number: sent[number].hex() for number in FEATURES[name].attributes}
    assert told == OCTETS[name]
    decoded = XFRM.decode(message.type, octets)
    for number, value in FEATURES[name].attributes.items():
        assert decoded.attributes[number] == value
    assert all(decoded.body[field] == value for field, value in FEATURES[name].body.items())


def test_offload_names_a_device_and_what_it_is_to_do() -> None:
    asked: dict[int, Any] = {Attribute.OFFLOAD_DEV: {"ifindex": 3, "flags": 4}}
    message = features.sample(Feature(since="6.2"), asked)
    octets = XFRM.encode(message)
    sent = split_attributes(octets[XFRM.bodies[message.type].size :])
    assert sent[28].hex() == "0300000004000000"

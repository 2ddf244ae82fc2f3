"""Sizes and offsets as gcc gives them for <linux/rtnetlink.h> and its neighbours, on x86-64."""

from __future__ import annotations

import pytest

from xfrmpy.datapath.netlink.layout import Layout
from xfrmpy.datapath.netlink.route import ADDRESS, LINK, ROUTE, RULE


@pytest.mark.parametrize(
    ("layout", "size", "field", "offset"),
    [
        (LINK, 16, "index", 4),
        (ADDRESS, 8, "index", 4),
        (ROUTE, 12, "type", 7),
        (RULE, 12, "action", 7),
    ],
)
def test_a_structure_is_laid_out_as_the_compiler_does(
    layout: Layout, size: int, field: str, offset: int
) -> None:
    assert layout.size == size
    assert layout.pack({field: 1})[offset] == 1

"""`docs/datapaths.md` is what the datapaths really do."""

from __future__ import annotations

import pytest

from integration.datapaths_page import PAGE, column, feature_rows, page, probe_both, rows
from xfrmpy.datapath.kernel.features import FEATURES, OTHERS


@pytest.mark.vm
def test_the_page_is_what_the_probes_of_the_laboratory_say() -> None:
    assert PAGE.read_text() == page(*probe_both())


@pytest.mark.native
def test_user_space_does_here_what_the_page_says() -> None:
    _, userspace = probe_both()
    told = rows(userspace)
    assert column(PAGE.read_text(), 2, told) == told


@pytest.mark.native
def test_what_every_kernel_tells_of_its_features_names_them_all() -> None:
    kernel, _ = probe_both()
    assert feature_rows(kernel).keys() == {*FEATURES, *OTHERS}

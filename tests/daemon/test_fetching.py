"""Whatever a certificate names is an address that can be looked up, or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.daemon.fetching import NotFetched, parse

LABEL = st.text("abc-_%.:[]@\u00e9\u0130", max_size=70)


@given(st.one_of(st.text(max_size=80), LABEL.map("http://{}/list".format)))
def test_a_url_has_a_host_that_can_be_looked_up_or_is_refused(url: str) -> None:
    try:
        place = parse(url)
    except NotFetched:
        return
    assert place.host.encode("idna")
    assert 0 < place.port < 65536


@pytest.mark.parametrize("host", ["ca..example", f"{'a' * 64}.example", "ca.example:65536"])
def test_what_no_name_can_be_is_told(host: str) -> None:
    with pytest.raises(NotFetched, match="not a URL"):
        parse(f"http://{host}/list")

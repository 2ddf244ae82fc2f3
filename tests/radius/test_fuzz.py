"""Attributes of any kind and length, in replies that are genuine: refused, or understood whole."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.radius import Form, decode_radius, radius_seeds
from xfrmpy.radius.attributes import MICROSOFT, Kind

KINDS = st.sampled_from([kind.value for kind in Kind]) | st.integers(0, 255)
VALUES = (
    st.binary(max_size=40)
    | st.sampled_from([bytes(4), bytes(16), b"\x03\x02\x00\x04", b"\x01\x02\x00\x05\x04"])
    | st.binary(max_size=40).map(lambda octets: MICROSOFT.to_bytes(4, "big") + octets)
)
ATTRIBUTE = st.tuples(KINDS, VALUES).map(lambda pair: bytes([pair[0], len(pair[1]) + 2]) + pair[1])
FORMS = st.sampled_from([bytes([form]) for form in Form])


@given(FORMS, st.lists(ATTRIBUTE | st.binary(max_size=6), max_size=12))
@example(b"\x02", [])
@example(b"\x02", [b"\x4f\x02"])
@example(b"\x02", [b"\x00\x00"])
def test_no_attributes_make_the_client_raise_anything_but_a_refusal(
    form: bytes, attributes: list[bytes]
) -> None:
    decode_radius(form + b"".join(attributes))


@given(st.sampled_from(sorted(radius_seeds().values())), st.data())
def test_no_change_of_a_reply_does_either(seed: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(seed) - 1))
    cut = data.draw(st.integers(0, 3))
    decode_radius(seed[:at] + data.draw(st.binary(max_size=3)) + seed[at + cut :])

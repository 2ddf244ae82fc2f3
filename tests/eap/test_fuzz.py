"""Whatever a stranger says in EAP: nothing but a refusal comes of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.eap import End, play_eap

PACKETS = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.tuples(st.sampled_from([1, 2, 3, 4, 6, 26, 254]), st.binary(max_size=80)).map(
            lambda typed: bytes([typed[0]]) + typed[1]
        ),
    ),
    max_size=8,
)


@given(st.binary(max_size=300))
def test_any_octets_get_nobody_in_and_break_nothing(data: bytes) -> None:
    play_eap(data)


@given(st.sampled_from([*End]), PACKETS)
def test_any_conversation_gets_nobody_in_and_breaks_nothing(end: End, packets: list[bytes]) -> None:
    play_eap(bytes([end]) + b"".join(bytes([len(p)]) + p for p in packets))

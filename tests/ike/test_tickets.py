"""Tickets as their gateway seals them: nobody else reads, changes or makes one (RFC 5723)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.tickets import (
    KEY_SECONDS,
    TICKET_SECONDS,
    TICKETS_OF_KEY,
    TicketKeys,
    TicketRefused,
    TicketState,
    bind_to_key,
)
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.registry import ProtocolId

SK_D = b"the old SK_d of thirty-two octets"


def state(**changes: Any) -> TicketState:
    plain = TicketState(
        tunnel="tunnel-a",
        id_i=Identity.parse("moon.example"),
        id_r=Identity.parse("192.0.2.2"),
        proposal=parse_proposal("aes128gcm16-prfsha256-x25519", ProtocolId.IKE),
        sk_d=SK_D,
        ppk_id="office",
        spi=b"our spi!",
        binding=bind_to_key(b"key", SK_D),
        expires_at=float(TICKET_SECONDS),
    )
    return replace(plain, **changes)


@pytest.fixture
def keys(make_random: Any) -> TicketKeys:
    return TicketKeys(make_random("gateway"))


def test_a_ticket_brings_back_what_was_sealed(keys: TicketKeys) -> None:
    ticket = keys.seal(state(), 0.0)
    assert replace(keys.open(ticket, 1.0), proposal=state().proposal) == state()
    assert str(keys.open(ticket, 1.0).proposal) == str(state().proposal)


def test_a_ticket_shows_nothing_of_what_it_holds(keys: TicketKeys) -> None:
    """Section 9.10: no identities, and no keys, leak from a ticket in clear."""
    ticket = keys.seal(state(), 0.0)
    for secret in (SK_D, b"moon.example", b"tunnel-a", b"our spi!", state().binding):
        assert secret not in ticket


def test_no_octet_of_a_ticket_can_be_changed(keys: TicketKeys) -> None:
    ticket = keys.seal(state(), 0.0)
    for at in range(len(ticket)):
        changed = bytearray(ticket)
        changed[at] ^= 0x10
        with pytest.raises(TicketRefused):
            keys.open(bytes(changed), 1.0)


def test_a_ticket_cannot_be_cut_short_or_made_longer(keys: TicketKeys) -> None:
    ticket = keys.seal(state(), 0.0)
    for size in range(len(ticket)):
        with pytest.raises(TicketRefused):
            keys.open(ticket[:size], 1.0)
    with pytest.raises(TicketRefused):
        keys.open(ticket + b"\0", 1.0)


def test_a_ticket_is_good_until_its_end_and_no_longer(keys: TicketKeys) -> None:
    """Section 6.1: "MUST include a protected expiration time"."""
    ticket = keys.seal(state(), 0.0)
    keys.open(ticket, TICKET_SECONDS - 0.1)
    with pytest.raises(TicketRefused, match="expired"):
        keys.open(ticket, TICKET_SECONDS)


def test_a_ticket_of_another_gateway_is_refused(keys: TicketKeys, make_random: Any) -> None:
    with pytest.raises(TicketRefused, match="none of ours"):
        keys.open(TicketKeys(make_random("another")).seal(state(), 0.0), 1.0)


def test_a_ticket_is_used_once(keys: TicketKeys) -> None:
    ticket = keys.seal(state(), 0.0)
    keys.spend(ticket, 1.0)
    with pytest.raises(TicketRefused, match="used"):
        keys.open(ticket, 1.0)
    with pytest.raises(TicketRefused, match="used"):
        keys.spend(ticket, 1.0)


def test_no_two_tickets_are_alike(keys: TicketKeys) -> None:
    """An IV never repeats under a key, though what is sealed does."""
    made = {keys.seal(state(), 0.0) for _ in range(1000)}
    assert len({ticket[9:17] for ticket in made}) == 1000


def test_the_key_is_changed_in_time_and_opens_what_it_sealed(keys: TicketKeys) -> None:
    old = keys.seal(state(expires_at=KEY_SECONDS * 3), 0.0)
    new = keys.seal(state(expires_at=KEY_SECONDS * 3), KEY_SECONDS)
    assert old[1:9] != new[1:9]
    keys.open(old, KEY_SECONDS + TICKET_SECONDS - 1)
    with pytest.raises(TicketRefused, match="key for it is gone"):
        keys.open(old, KEY_SECONDS + TICKET_SECONDS)
    keys.open(new, KEY_SECONDS + TICKET_SECONDS)


def test_the_key_is_changed_after_so_many_tickets(keys: TicketKeys) -> None:
    first = keys.seal(state(), 0.0)
    keys._keys[0].sealed = TICKETS_OF_KEY
    assert keys.seal(state(), 0.0)[1:9] != first[1:9]
    keys.open(first, 1.0)


def test_a_ticket_is_bound_to_the_shared_key_and_to_the_ike_sa() -> None:
    made = {bind_to_key(key, sk_d) for key in (b"one", b"other") for sk_d in (b"1", b"2")}
    assert len(made) == 4


def test_what_a_ticket_holds_is_in_no_representation() -> None:
    assert repr(SK_D) not in repr(state())
    assert repr(state().binding) not in repr(state())

"""What this kernel's XFRM really does: each thing is tried with an SA that is removed at once.

A kernel may have XFRM netlink without ESP, or ESP without a cipher, and ignores attributes that it
does not know, so that success proves nothing: each SA is read back and compared.
"""

from __future__ import annotations

from dataclasses import replace
from errno import EPERM, EPROTONOSUPPORT
from ipaddress import ip_address

from xfrmpy.datapath.interface import Capabilities, DatapathError
from xfrmpy.datapath.kernel import sad
from xfrmpy.datapath.kernel.compression import decode_states, encode_states
from xfrmpy.datapath.kernel.features import pads
from xfrmpy.datapath.kernel.messages import MessageType
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY, Cipher, Integrity
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import (
    OUR_REQIDS,
    Direction,
    DontFragment,
    InnerEnds,
    Mode,
    SadEntry,
    UdpEncapsulation,
)
from xfrmpy.registry import EncryptionAlgorithm, ProtocolId

_SPI = 0x5846FFFF
_CPI = 0xF584  # RFC 3173 section 3.3: of private use
_IPV4 = (ip_address("192.0.2.1"), ip_address("192.0.2.2"))  # RFC 5737: nobody's
_IPV6 = (ip_address("2001:db8::1"), ip_address("2001:db8::2"))  # RFC 3849: nobody's


class _Trial:
    """Throw-away SAs, and what became of them."""

    def __init__(self, requests: NetlinkSocket) -> None:
        self._requests = requests
        self.missing: dict[str, str] = {}
        self.refusals: set[int | None] = set()

    def works(self, name: str, entry: SadEntry) -> bool:
        """Whether the kernel takes `entry` and gives the same back; if not, `missing` says why."""
        try:
            self._try(f"use {name}", entry)
        except DatapathError as error:
            if error.errno == EPERM:
                raise
            self.missing[name] = str(error)
            self.refusals.add(error.errno)
            return False
        return True

    def _try(self, what: str, entry: SadEntry) -> None:
        states = encode_states(entry)
        get, delete = (
            [Request(sad.encode_state_id(state, kind), what) for state in states]
            for kind in (MessageType.GETSA, MessageType.DELSA)
        )
        self._requests.exchange(delete)  # if a probe was killed
        try:
            for state in states:
                self._requests.ask(Request(state, what, create=True))
            taken = [message for one in get for message in self._requests.ask(one)]
        finally:
            self._requests.exchange(delete)
        if decode_states(taken[-1], *taken[:-1]) != entry:
            raise DatapathError(f"cannot {what}: the kernel takes it and does something else")


def probe(requests: NetlinkSocket) -> Capabilities:
    """Raises `DatapathError` only where nothing can be tried at all, for lack of privilege."""
    trial = _Trial(requests)
    working = _working_suites(trial)
    if not working:
        return _no_esp(trial)
    sample = _entry(working[0])
    ipv6 = replace(sample, source=_IPV6[0], destination=_IPV6[1])
    trial.works("ipv6", ipv6)
    return Capabilities(
        protocols=frozenset(suite.protocol for suite in working),
        modes=frozenset(m for m in Mode if trial.works(f"{m} mode", _in_mode(sample, m))),
        suites=frozenset(str(suite) for suite in working),
        esn=trial.works("esn", _entry(replace(working[0], esn=True))),
        udp_encapsulation=trial.works(
            "udp encapsulation", replace(sample, encapsulation=UdpEncapsulation(4500, 4500))
        ),
        raw_esp=True,
        padding=pads(),
        marks=trial.works(
            "marks", replace(sample, direction=Direction.IN, set_mark=Mark(0xA0, 0xF0))
        ),
        dont_fragment=frozenset({DontFragment.COPY, DontFragment.CLEAR}),
        compression=all(
            trial.works("compression", replace(one, cpi=_CPI)) for one in (sample, ipv6)
        ),
        pads_compressed=False,
        missing=trial.missing | _no_ah(working) | _NO_IMPLICIT_IV,
    )


def _no_ah(working: list[EspSuite | AhSuite]) -> dict[str, str]:
    has_ah = any(suite.protocol is ProtocolId.AH for suite in working)
    return {} if has_ah else {"ah": "this kernel has no AH (there is no ah4 module)"}


def _in_mode(sample: SadEntry, mode: Mode) -> SadEntry:
    ends = InnerEnds(source=_IPV6[0], destination=_IPV6[1])
    return replace(sample, mode=mode, inner=ends if mode is Mode.BEET else None)


_NO_IMPLICIT_IV = {
    cipher.name: "Linux has no implicit IV (RFC 8750)"
    for cipher in CIPHERS
    if not cipher.kernel_name
}


def _no_esp(trial: _Trial) -> Capabilities:
    if EPROTONOSUPPORT in trial.refusals:
        why = "this kernel has no ESP (Requested type not found: there is no esp4 module)"
    else:
        why = "this kernel has no cipher of ours for ESP"
    return Capabilities(
        protocols=frozenset(),
        modes=frozenset(),
        suites=frozenset(),
        esn=False,
        udp_encapsulation=False,
        raw_esp=False,
        dont_fragment=frozenset(),
        compression=False,
        missing=trial.missing | {"esp": why},
    )


def _working_suites(trial: _Trial) -> list[EspSuite | AhSuite]:
    """Ciphers and integrity algorithms that go together are tried each with one of the others.

    The kernel combines them freely, and each that is tried may load a module.
    """

    def works(suite: EspSuite | AhSuite) -> bool:
        return trial.works(str(suite), _entry(suite))

    esp: list[EspSuite | AhSuite] = []
    alone = [c for c in CIPHERS if c.kernel_name and not c.is_aead]
    esp += filter(works, (_esp(c) for c in CIPHERS if c.kernel_name and c.is_aead))
    integrities = [i for i in INTEGRITY if works(_esp(_PARTNER, i))]
    ciphers = [c for c in alone if integrities and works(_esp(c, integrities[0]))]
    esp += (_esp(c, i) for c in ciphers for i in integrities)
    ah = (AhSuite(integrity=i, esn=False) for i in INTEGRITY)
    return [*esp, *filter(works, ah)] if esp else []


_PARTNER = next(c for c in CIPHERS if c.id == EncryptionAlgorithm.AES_CBC)
"""A cipher that every kernel with ESP has."""


def _esp(cipher: Cipher, integrity: Integrity | None = None) -> EspSuite:
    return EspSuite(cipher=cipher, integrity=integrity, esn=False)


def _entry(suite: EspSuite | AhSuite) -> SadEntry:
    return SadEntry(
        direction=Direction.OUT,  # it has all that an inbound one has, and a mark
        spi=_SPI,
        source=_IPV4[0],
        destination=_IPV4[1],
        reqid=OUR_REQIDS[-1],
        suite=suite,
        encryption_key=_key(suite.keymat),
        integrity_key=_key(suite.integrity.key) if suite.integrity else b"",
    )


def _key(size: int) -> bytes:
    return bytes(range(size))

"""What this kernel's XFRM really does: each thing is tried with an SA that is removed at once.

A kernel may have XFRM netlink without ESP, or ESP without a cipher, and ignores attributes that it
does not know, so that success proves nothing: each SA is read back and compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from errno import EPERM, EPROTONOSUPPORT
from ipaddress import ip_address

from xfrmpy.datapath.interface import Capabilities, DatapathError
from xfrmpy.datapath.kernel import entries
from xfrmpy.datapath.kernel.messages import MessageType
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import OUR_REQIDS, Direction, DontFragment, Mode, SadEntry, UdpEncapsulation
from xfrmpy.registry import ProtocolId

_SPI = 0x5846FFFF
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
        delete = Request(entries.encode_sa_id(entry.id, MessageType.DELSA), what)
        self._requests.exchange([delete])  # if a probe was killed
        self._requests.ask(Request(entries.encode_sa(entry), what, create=True))
        try:
            get = Request(entries.encode_sa_id(entry.id, MessageType.GETSA), what)
            (taken,) = self._requests.ask(get)
        finally:
            self._requests.exchange([delete])
        if entries.decode_sa(taken) != entry:
            raise DatapathError(f"cannot {what}: the kernel takes it and does something else")


def probe(requests: NetlinkSocket) -> Capabilities:
    """Raises `DatapathError` only where nothing can be tried at all, for lack of privilege."""
    trial = _Trial(requests)
    working = [entry for entry in _suite_entries() if trial.works(str(entry.suite), entry)]
    if not working:
        return _no_esp(trial)
    sample = working[0]
    ipv6 = replace(sample, source=_IPV6[0], destination=_IPV6[1])
    trial.works("ipv6", ipv6)
    return Capabilities(
        protocols=frozenset({ProtocolId.ESP}),
        modes=frozenset(m for m in Mode if trial.works(f"{m} mode", replace(sample, mode=m))),
        suites=frozenset(str(entry.suite) for entry in working),
        esn=trial.works("esn", replace(sample, suite=replace(sample.suite, esn=True))),
        udp_encapsulation=trial.works(
            "udp encapsulation", replace(sample, encapsulation=UdpEncapsulation(4500, 4500))
        ),
        raw_esp=True,
        marks=trial.works(
            "marks", replace(sample, direction=Direction.IN, set_mark=Mark(0xA0, 0xF0))
        ),
        dont_fragment=frozenset({DontFragment.COPY, DontFragment.CLEAR}),
        compression=False,
        missing=trial.missing,
    )


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


def _suite_entries() -> Iterator[SadEntry]:
    """An SA of each cipher, with each integrity algorithm where it needs one."""
    for cipher in CIPHERS:
        for integrity in (None,) if cipher.is_aead else INTEGRITY:
            yield SadEntry(
                direction=Direction.OUT,  # it has all that an inbound one has, and a mark
                spi=_SPI,
                source=_IPV4[0],
                destination=_IPV4[1],
                reqid=OUR_REQIDS[-1],
                suite=EspSuite(cipher=cipher, integrity=integrity, esn=False),
                encryption_key=bytes(range(cipher.keymat)),
                integrity_key=bytes(range(integrity.key)) if integrity else b"",
            )

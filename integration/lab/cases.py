"""The tunnels that xfrmpy must bring up with any peer: algorithms first, then IP versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from integration.lab.network import Network
from integration.lab.process import IN_VM
from integration.lab.tunnel import Tunnel


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`outside` and `inside` are IP versions."""

    ike: str
    esp: str
    outside: int = 4
    inside: int = 4

    def __str__(self) -> str:
        return f"{self.ike}+{self.esp}-ipv{self.outside}-ipv{self.inside}"


_ESN = "esn" if IN_VM else "noesn"
"""strongSwan's ESP in user space has no extended sequence numbers."""

_IKE, _ESP = "aes128gcm16-prfsha256-x25519", "aes128gcm16-noesn"

CASES = (
    Case(ike=_IKE, esp=_ESP),
    Case(ike="aes256gcm16-prfsha384-ecp384", esp=f"aes256gcm16-{_ESN}"),
    Case(ike="aes128-sha256-prfsha256-ecp256", esp=f"aes128-sha256-{_ESN}"),
    Case(ike="aes256-sha384-prfsha384-modp3072", esp="aes256-sha384-noesn"),
    Case(ike="aes256-sha512-prfsha512-ecp521", esp="aes256-sha512-noesn"),
    Case(ike="chacha20poly1305-prfsha256-modp2048", esp="chacha20poly1305-noesn"),
    Case(ike="aes256gcm16-prfsha512-modp4096", esp=f"aes128-sha512-{_ESN}"),
    Case(ike=_IKE, esp=_ESP, outside=6, inside=6),
    Case(ike=_IKE, esp=_ESP, outside=4, inside=6),
    Case(ike=_IKE, esp=_ESP, outside=6, inside=4),
)


def tunnels(network: Network, cases: Sequence[Case] = CASES) -> list[Tunnel]:
    """A tunnel for each case, as moon sees it; the case's index is the tunnel's number."""
    return [
        network.tunnel(number, case.outside, case.inside, ike=case.ike, esp=case.esp)
        for number, case in enumerate(cases)
    ]

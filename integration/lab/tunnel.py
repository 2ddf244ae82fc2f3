"""What two gateways have agreed upon, in xfrmpy's words; each foreign peer translates them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFiles:
    """A private key and its public half, in PEM; the private one may be on a token, by its `uri`,
    with the PIN in a file."""

    private: Path
    public: Path
    uri: str = ""
    pin: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who proves itself by EAP, by a method as xfrmpy calls it."""

    name: str
    password: str
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One gateway. `public` is where the other one reaches `address`: not the same behind a NAT.

    With a `key` it proves itself by that, as a `user` by EAP, and by the shared key of the tunnel
    otherwise.
    """

    address: str
    public: str
    id: str
    subnets: tuple[str, ...]
    key: KeyFiles | None = None
    user: User | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """A tunnel as one of its ends sees it. Several proposals are separated by commas.

    One in transport mode carries what the two gateways say to each other, and has no subnets. With
    `ah` that is what protects the packets, and `esp` counts for nothing. Who may call a gateway of
    ours by EAP is the user of the other end, or what `acceptance` says in the words of the policy.
    """

    ours: End
    theirs: End
    psk: str = "correct horse battery staple, and then some"
    ike: str = "aes128gcm16-prfsha256-x25519"
    esp: str = "aes128gcm16-noesn"
    ah: str = ""
    is_transport: bool = False
    acceptance: Mapping[str, Any] | None = None

    def mirrored(self) -> Tunnel:
        """As the other end sees it."""
        return replace(self, ours=self.theirs, theirs=self.ours)

    def between(self, ours: tuple[str, ...], theirs: tuple[str, ...]) -> Tunnel:
        """The same, carrying other traffic."""
        return replace(
            self,
            ours=replace(self.ours, subnets=ours),
            theirs=replace(self.theirs, subnets=theirs),
        )

    def called_by(self, user: User, gateway: KeyFiles, *, is_ours: bool) -> Tunnel:
        """The same, in which one end proves itself by EAP, and the other by a key."""
        ends = replace(self.ours), replace(self.theirs)
        caller, called = ends if is_ours else ends[::-1]
        caller, called = replace(caller, user=user), replace(called, key=gateway)
        ours, theirs = (caller, called) if is_ours else (called, caller)
        return replace(self, ours=ours, theirs=theirs)

    def signed(self, ours: KeyFiles | None, theirs: KeyFiles | None) -> Tunnel:
        """The same, with keys in place of the shared one."""
        return replace(
            self, ours=replace(self.ours, key=ours), theirs=replace(self.theirs, key=theirs)
        )

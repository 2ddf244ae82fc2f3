"""An IKE SA with all that it has as octets, and back: what another process needs to go on with it.

Read RFC 7296 sections 2.1 to 2.3 first, and RFC 5282 section 3.1 for why the count of what was
sealed must never go back. The tables of `record_tables` say which attribute of which object is
kept, the codecs of `record_codecs` how it is written; a test sees to it that every other one is
left out on purpose. A reader takes what the tables have and nothing else, so a record of another
version is refused and never guessed at. The tunnel is found again by its name, and its policy has
a record of its own (`kept_policy`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xfrmpy.ike.auth import IkeAuth
from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.core import IKE_SPI_SIZE, Core
from xfrmpy.ike.exchange import Exchange
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.modes import policy_between
from xfrmpy.ike.nat import is_open
from xfrmpy.ike.record_codecs import Table, Unreadable, check, items, split
from xfrmpy.ike.record_tables import CHANNEL, CHILD_SA, COUNTED, IKE_SA, WINDOW, write_answers
from xfrmpy.ipsec.addresses import Path
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.proposals import ike_suite
from xfrmpy.policy.model import ChildPolicy, Retransmission, TunnelPolicy
from xfrmpy.wire.cursor import Malformed

FORMAT = 11
"""Of both records. Another table is another format."""


_COUNT = b"+"


def is_lasting(sa: IkeSa) -> bool:
    """Whether it is worth keeping: the peer may hold it for established, or hears its end.

    What a stranger has half opened is not, so nobody unknown can make us write anything; nor is
    what we begin as long as our last AUTH has not left, for a puzzle is to be solved first, or EAP.
    """
    outstanding = sa.channel.window.outstanding.values()
    has_asked = sa.is_initiator and not all(_is_early(r.exchange) for r in outstanding)
    is_wanted = has_asked or sa.is_authenticated
    return sa.channel.is_protected and sa.tunnel is not None and is_wanted


def _is_early(exchange: Exchange) -> bool:
    return isinstance(exchange, IkeAuth) and exchange.is_early


def write_ike_sa(sa: IkeSa) -> bytes:
    """The record of an IKE SA between two steps. It is as secret as its keys."""
    writer = Writer(sa)
    assert sa.tunnel is not None
    held = [*sa.children, *(child for _, child in sa.retired)]
    record: dict[str, Plain] = {
        "format": FORMAT,
        "tunnel": sa.tunnel.name,
        "is_initiator": sa.is_initiator,
        "spis": [sa.channel.our_spi.hex(), sa.channel.their_spi.hex()],
        "path": to_plain(sa.path),
        "ike_sa": writer.write(sa, IKE_SA),
        "channel": writer.write(sa.channel, CHANNEL),
        "window": writer.write(sa.channel.window, WINDOW),
        "children": [writer.child(child) for child in held],
        "retired_until": [until for until, _ in sa.retired],
    }
    record["gone"] = list(writer.write_gone())
    return _encode(record)


def count_of(spi: bytes) -> bytes:
    """The name of the record beside that of an IKE SA: what its last messages have changed."""
    return spi + _COUNT


def spi_of(name: bytes) -> bytes:
    """The IKE SA that a record is about."""
    return name.removesuffix(_COUNT) if len(name) > IKE_SPI_SIZE else name


def write_count(sa: IkeSa) -> bytes:
    """All that a message changes that says nothing: Message IDs, the count of what was sealed, and
    what may have to be sent again. It holds until the IKE SA itself is written again, whose answers
    are not repeated (`Window.note_kept`)."""
    writer = Writer(sa)
    window = sa.channel.window
    return _encode(
        {
            "format": FORMAT,
            "sealed": sa.channel.sealed,
            "window": writer.write(window, COUNTED),
            "answers": write_answers(window.answers_not_kept),
        }
    )


_encoder = json.JSONEncoder(separators=(",", ":"))


def _encode(record: dict[str, Plain]) -> bytes:
    return _encoder.encode(record).encode()


def read_ike_sas(
    core: Core, records: Mapping[bytes, bytes], usable: Collection[str]
) -> tuple[list[IkeSa], list[IkeSa], list[str]]:
    """Bring IKE SAs back into an endpoint that has none of them.

    Gives them, then those whose tunnels are not `usable` or whose port is not ours any more, which
    come back without Child SAs and can do no more than say goodbye, then a sentence for each record
    that was refused.
    """
    readers: list[Reader] = []
    errors: list[str] = []
    living: dict[int, ChildSa] = {}
    for spi, record in records.items():
        if spi_of(spi) != spi:
            continue
        try:
            recorded = Recorded.parse(record, records.get(count_of(spi)))
            check(recorded.spis[0] == spi, "it stands under another name")
            is_usable = recorded.tunnel in usable and is_open(recorded.path, core.natt_port)
            readers.append(Reader(core, recorded, living, is_usable=is_usable))
        except _WRONG as error:
            errors.append(f"{type(error).__name__}: {error}")
    restored: list[IkeSa] = []
    unusable: list[IkeSa] = []
    for reader in readers:
        try:
            reader.link()
        except _WRONG as error:
            errors.append(f"{type(error).__name__}: {error}")
            core.forget(reader.sa)
        else:
            (restored if reader.is_usable else unusable).append(reader.sa)
    return restored, unusable, errors


_WRONG = (Unreadable, KeyError, TypeError, ValueError, Malformed)
"""What a record can be wrong by; all of it costs that IKE SA and no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A record taken apart, none of it believed yet but its form."""

    format: int
    tunnel: str
    is_initiator: bool
    spis: tuple[bytes, ...]
    path: Path
    ike_sa: dict[str, Any]
    channel: dict[str, Any]
    window: dict[str, Any]
    children: list[Any]
    retired_until: tuple[float, ...]
    gone: list[Any]
    kept_answers: frozenset[int]

    @classmethod
    def parse(cls, octets: bytes, count: bytes | None) -> Recorded:
        plain = _decode(octets)
        kept_answers = frozenset(answer["message_id"] for answer in plain["window"]["_answers"])
        if count is not None:
            plain = with_count(plain, _decode(count))
        bare = {name: plain.pop(name) for name in ("ike_sa", "channel", "window")}
        lists = {name: plain.pop(name) for name in ("children", "gone")}
        check(all(isinstance(part, dict) for part in bare.values()), "a part is missing")
        check(all(isinstance(part, list) for part in lists.values()), "a list is missing")
        simple = {name: from_plain(kind, plain.pop(name)) for name, kind in _SIMPLE.items()}
        check(not plain, "there is more than there should be")
        return cls(**simple, **bare, **lists, kept_answers=kept_answers)


def with_count(record: dict[str, Any], count: dict[str, Any]) -> dict[str, Any]:
    """A record, and what has been counted since; of its answers, those that are still kept."""
    check(count.keys() == {"format", "sealed", "window", "answers"}, "a count is another")
    check(count["window"].keys() == COUNTED.keys(), "a count is of others")
    window = record["window"] | count["window"]
    first = window["_highest_id"] - window["_our_size"] + 1
    answers = [answer for answer in window["_answers"] if answer["message_id"] >= first]
    return record | {
        "channel": record["channel"] | {"sealed": count["sealed"]},
        "window": window | {"_answers": answers + items(count["answers"])},
    }


def _decode(octets: bytes) -> dict[str, Any]:
    plain = json.loads(octets)
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise Unreadable("the record is of another format")
    return plain


_SIMPLE: dict[str, Any] = {
    "format": int,
    "tunnel": str,
    "is_initiator": bool,
    "spis": tuple[bytes, ...],
    "path": Path,
    "retired_until": tuple[float, ...],
}


class Writer:
    """Writes the objects of one IKE SA. `gone` are Child SAs that only others still refer to."""

    def __init__(self, sa: IkeSa) -> None:
        self.sa = sa
        self._core = sa.core
        self._gone: list[ChildSa] = []
        tunnel = sa.core.tunnels.get(sa.tunnel_name)
        self._policies = () if tunnel is None else tunnel.policy.children

    def write(self, thing: object, table: Table) -> dict[str, Plain]:
        return {name: codec.write(getattr(thing, name), self) for name, codec in table.items()}

    def child(self, child: ChildSa) -> dict[str, Plain]:
        return {"policy": self._policy_of(child), **self.write(child, CHILD_SA)}

    def _policy_of(self, child: ChildSa) -> Plain:
        """Its name where it is the tunnel's; one of an older policy is written in full."""
        named = (p for p in self._policies if p.name == child.policy.name)
        if any(policy_between(policy, self.sa.path) == child.policy for policy in named):
            return child.policy.name
        return to_plain(child.policy)

    def reference(self, child: ChildSa) -> int:
        """The SPI of one that is held by an IKE SA; -1, -2 and so on for one that is gone."""
        if self._core.children.get(child.spi_in) is child:
            return child.spi_in
        if child not in self._gone:
            self._gone.append(child)
        return -1 - self._gone.index(child)

    def write_gone(self) -> Iterator[Plain]:
        """Each may refer to another that is gone."""
        written = 0
        while written < len(self._gone):
            yield self.child(self._gone[written])
            written += 1

    def ike_sa(self, sa: IkeSa | None) -> str | None:
        """One that is forgotten matters no more."""
        is_known = sa is not None and self._core.ike_sas.get(sa.our_spi) is sa
        return sa.our_spi.hex() if sa is not None and is_known else None


class Reader:
    """Makes the objects of one IKE SA anew; `link` follows when every IKE SA has been made."""

    def __init__(
        self,
        core: Core,
        recorded: Recorded,
        living: dict[int, ChildSa],
        *,
        is_usable: bool,
    ) -> None:
        self.core = core
        self.is_usable = is_usable
        self._recorded = recorded
        self._living = living
        known = core.tunnels.get(recorded.tunnel)
        our_spi, their_spi = recorded.spis
        check(our_spi not in core.ike_sas, "it is there already")
        self.sa = IkeSa(
            core,
            path=recorded.path,
            is_initiator=recorded.is_initiator,
            schedule=Retransmission(),
            tunnel=None if known is None else known.policy,
            spis=(our_spi, their_spi),
        )
        try:
            self._make()
        except _WRONG:
            core.forget(self.sa)
            raise
        if self.is_usable:
            living.update({child.spi_in: child for child in self._children})

    def _make(self) -> None:
        self._read_soon, self._read_late = split(IKE_SA)
        plain = self._recorded.ike_sa
        check(plain.keys() == IKE_SA.keys(), "the attributes of the IKE SA are others")
        self._read(self.sa, self._read_soon, plain)
        proposal = self.sa.proposal
        check(proposal is not None and self.sa.keys is not None, "it has no keys")
        assert proposal is not None
        assert self.sa.keys is not None
        self.sa.suite = ike_suite(proposal)
        self.sa.channel.protect(self.sa.suite, self.sa.keys)
        self.read(self.sa.channel, CHANNEL, self._recorded.channel)
        if self.is_usable:
            self._children = [self._child(plain) for plain in self._recorded.children]
            self._gone = [self._child(plain) for plain in self._recorded.gone]

    def link(self) -> None:
        """What refers to other objects: exchanges, and what replaces what."""
        sa, recorded = self.sa, self._recorded
        if not self.is_usable:
            self.read(sa.channel.window, WINDOW, {**recorded.window, "waiting": []})
            return
        self.read(sa.channel.window, WINDOW, recorded.window)
        sa.channel.window.note_kept(recorded.kept_answers)
        self._read(sa, self._read_late, recorded.ike_sa)
        for child, plain in zip(
            (*self._children, *self._gone), (*recorded.children, *recorded.gone), strict=True
        ):
            self._read(child, split(CHILD_SA)[1], plain)
        count = len(self._children) - len(recorded.retired_until)
        check(count >= 0, "more is retired than there is")
        sa.children = self._children[:count]
        sa.retired = list(zip(recorded.retired_until, self._children[count:], strict=True))
        for child in self._children:
            self.core.add_child(child)
            child.name(child.entries)

    def read(self, thing: object, table: Table, plain: dict[str, Any]) -> None:
        """Set every attribute that the table has, from a record that has exactly these."""
        check(plain.keys() == table.keys(), f"the attributes of {type(thing).__name__} are others")
        self._read(thing, table, plain)

    def _read(self, thing: object, table: Table, plain: dict[str, Any]) -> None:
        for name, codec in table.items():
            setattr(thing, name, codec.read(plain[name], self))

    def _child(self, plain: Any) -> ChildSa:
        """A Child SA without those that it refers to."""
        assert self.sa.tunnel is not None
        check(plain.keys() == {"policy", *CHILD_SA}, "the attributes of a Child SA are others")
        child = ChildSa.__new__(ChildSa)
        child.policy = self._policy(plain["policy"], self.sa.tunnel)
        child.tunnel = self.sa.tunnel
        child._core = self.core  # noqa: SLF001
        child._absent = ()  # noqa: SLF001
        child.ids = ()
        child.is_asking_usage = False
        self._read(child, split(CHILD_SA)[0], plain)
        check(child.spi_in not in self.core.children, "a Child SA is there already")
        return child

    def _policy(self, plain: Any, tunnel: TunnelPolicy) -> ChildPolicy:
        if not isinstance(plain, str):
            return from_plain(ChildPolicy, plain)
        (policy,) = (child for child in tunnel.children if child.name == plain)
        return policy_between(policy, self.sa.path)

    def reference(self, plain: Any) -> ChildSa:
        number = from_plain(int, plain)
        if number < 0:
            return self._gone[-1 - number]
        return self._living[number]

    def ike_sa(self, plain: Any) -> IkeSa | None:
        return None if plain is None else self.core.ike_sas.get(from_plain(bytes, plain))

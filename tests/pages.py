"""The parts of pages that are drawn from the code; `python -m tests.pages` renews them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from tests.documentation import ROOT, blocks, text_of
from tests.suites import AH_SUITES, ESP_SUITES
from xfrmpy.ipsec.overhead import inner_mtu
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import Mode
from xfrmpy.policy.foreign import rendering
from xfrmpy.policy.foreign.exporting import other_end
from xfrmpy.policy.foreign.importing import Rule
from xfrmpy.policy.foreign.ipsec_conf import CONN, SIDE
from xfrmpy.policy.foreign.swanctl import CHILD, CONNECTION, END
from xfrmpy.policy.load import load_policy

OUTER_MTU = 1500
_WAYS = {
    "tunnel, IPv4": (Mode.TUNNEL, 4, False),
    "UDP": (Mode.TUNNEL, 4, True),
    "tunnel, IPv6": (Mode.TUNNEL, 6, False),
    "UDP ": (Mode.TUNNEL, 6, True),
    "transport, IPv4": (Mode.TRANSPORT, 4, False),
    "UDP  ": (Mode.TRANSPORT, 4, True),
    "transport, IPv6": (Mode.TRANSPORT, 6, False),
    "BEET, IPv4": (Mode.BEET, 4, False),
}


def overhead() -> Iterator[str]:
    """The largest inner packets, suites that cost the same in one line."""
    rows: dict[tuple[str, ...], list[str]] = {}
    suites: list[EspSuite | AhSuite] = [*ESP_SUITES, *AH_SUITES]
    for suite in (suite for suite in suites if not suite.esn):
        figures = tuple(
            _fitting(suite, *way) if _is_possible(suite, *way) else "" for way in _WAYS.values()
        )
        rows.setdefault(figures, []).append(f"`{suite}`")
    yield f"| suite | {' | '.join(name.strip() for name in _WAYS)} |"
    yield "|---|" + "---:|" * len(_WAYS)
    for figures, names in rows.items():
        yield f"| {', '.join(names)} | {' | '.join(figures)} |"


def _is_possible(suite: EspSuite | AhSuite, mode: Mode, _version: int, in_udp: bool) -> bool:
    return isinstance(suite, EspSuite) or not (in_udp or mode is Mode.BEET)


def _fitting(suite: EspSuite | AhSuite, mode: Mode, version: int, in_udp: bool) -> str:
    fits = inner_mtu(OUTER_MTU, suite, outer_version=version, encapsulated=in_udp, mode=mode)
    return str(fits)


def swanctl() -> Iterator[str]:
    yield from _rules({"": CONNECTION, "local, remote: ": END, "children: ": CHILD})


def ipsec() -> Iterator[str]:
    yield from _rules({"": CONN, "left, right: ": SIDE})


def _rules(tables: Mapping[str, Mapping[str, Rule]]) -> Iterator[str]:
    yield "| there | here | not carried over, because |"
    yield "|---|---|---|"
    for where, rules in tables.items():
        for key, rule in rules.items():
            harmless = ", ".join(f"`{value}`" for value in rule.harmless)
            but = f"; {harmless}: nothing is lost" if harmless and rule.loss else ""
            if rule.ours and rule.loss:
                but = f", other than {harmless}"
            ours = rule.ours if "`" in rule.ours or " " in rule.ours else f"`{rule.ours}`"
            name = f"`{key}`" if key else "the address"
            cells = (f"{where}{name}", ours if rule.ours else "", rule.loss and rule.loss + but)
            yield f"| {' | '.join(cells)} |"


TABLES: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
    "overhead": ("docs/overhead.md", overhead),
    "swanctl": ("docs/migrating.md", swanctl),
    "ipsec": ("docs/migrating.md", ipsec),
}


def with_table(text: str, name: str) -> str:
    """The page with the table as the code has it. `AssertionError` if it has no place for it."""
    _, draw = TABLES[name]
    table = "\n".join(draw())
    pattern = rf"(<!-- table: {name} -->\n).*?(<!-- /table -->)"
    made, count = re.subn(
        pattern, lambda m: f"{m[1]}{table}\n{m[2]}", text, count=1, flags=re.DOTALL
    )
    assert count == 1, name
    return made


PEERS = {
    "docs/peer-strongswan.md": {
        "office.conf": rendering.swanctl_conf,
        "office-secret.conf": rendering.swanctl_secrets,
    },
    "docs/peer-libreswan.md": {
        "office.conf": rendering.ipsec_conf,
        "office.secrets": rendering.ipsec_secrets,
    },
}
"""By page, the files that `xfrmpy export` makes of the first policy on it."""

PAGE_SECRET = b"the key of the page, which nobody is to use"


def with_exports(page: str, text: str) -> str:
    """The page of a peer with the other end as it is exported."""
    policy = next(b for b in blocks(page) if b.language == "yaml")
    with tempfile.TemporaryDirectory() as place:
        for name, content in {
            f"conf.d/{Path(policy.name).name}": policy.text.encode(),
            "secrets/office": PAGE_SECRET,
        }.items():
            file = Path(place, name)
            file.parent.mkdir()
            file.touch(0o600)
            file.write_bytes(content)
        (tunnel,) = load_policy([Path(place, "conf.d")]).tunnels
    for name, render in PEERS[page].items():
        made = render(other_end(tunnel, "198.51.100.1"))
        shown = made.replace(PAGE_SECRET.hex(), "...").replace(PAGE_SECRET.decode(), "...")
        pattern = rf"(```conf\n# \S*/{re.escape(name)}\n).*?(^```$)"
        text, count = re.subn(
            pattern,
            lambda m, shown=shown: f"{m[1]}{shown}{m[2]}",  # type: ignore[misc]
            text,
            count=1,
            flags=re.DOTALL | re.MULTILINE,
        )
        assert count == 1, name
    return text


def renew() -> None:
    """Write all of it."""
    for name, (page, _) in TABLES.items():
        path = ROOT / page
        path.write_text(with_table(path.read_text(), name))
    for page in PEERS:
        (ROOT / page).write_text(with_exports(page, text_of(page)))


if __name__ == "__main__":
    renew()

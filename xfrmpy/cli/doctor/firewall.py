"""The check of others' nf_tables: only what can be told without doing what the kernel does.

That is whether a chain drops what no rule lets in, while no rule at all names the port. Whether a
rule that names it is met cannot be told so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xfrmpy.cli.doctor.findings import Check, Finding
from xfrmpy.cli.doctor.host import PORTS, Host, Unseen


def check_firewall(check: Check, host: Host) -> Iterator[Finding]:
    if isinstance(host.ruleset, Unseen):
        yield check.unseen("whether a firewall drops IKE", host.ruleset)
        return
    chains = [entry["chain"] for entry in host.ruleset if "chain" in entry]
    closed = [c for c in chains if c.get("hook") == "input" and c.get("policy") == "drop"]
    named = {port for entry in host.ruleset for port in PORTS if _names(entry, port)}
    unnamed = [str(port) for port in PORTS if port not in named]
    if not closed:
        yield check.ok("no chain of nf_tables drops by policy what comes to this host")
    elif unnamed:
        yield check.note(
            f"a firewall drops what no rule lets in, and no rule names UDP {' or '.join(unnamed)}",
            *(("drops", f"{c['family']} {c['table']} {c['name']}") for c in closed),
            fix=_let_in(closed[0]),
        )
    else:
        yield check.ok("a firewall drops what no rule lets in, and has rules that name the ports")


def _let_in(chain: Mapping[str, Any]) -> str:
    place = f"{chain['family']} {chain['table']} {chain['name']}"
    return (
        f"`nft insert rule {place} udp dport '{{ 500, 4500 }}' accept`, and `ip protocol esp "
        "accept` where there is no NAT; and where the rules are kept"
    )


def _names(entry: Any, port: int) -> bool:
    """Whether the number stands anywhere in a rule or in a set, by itself or within a range."""
    match entry:
        case bool():
            return False
        case int():
            return entry == port
        case {"range": [int(first), int(last)]}:
            return first <= port <= last
        case {"handle": _, **rest}:
            return _names(rest, port)
        case dict():
            return any(_names(value, port) for value in entry.values())
        case list():
            return any(_names(value, port) for value in entry)
    return False

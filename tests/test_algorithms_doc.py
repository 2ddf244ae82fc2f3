"""`docs/algorithms.md` is drawn from the tables of the code.

To bring it up to date: `python -m tests.test_algorithms_doc`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from xfrmpy.ipsec.algorithms import CIPHERS, GROUPS, INTEGRITY, PRFS, Cipher
from xfrmpy.policy.profiles import PROFILES, ah_proposals, esp_proposals, ike_proposals

PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"

HEAD = """\
# Algorithms

What `ike`, `esp` and `ah` can name in their `proposals`, in the words of strongSwan where it has
the algorithm. Each is checked against published vectors (`tests/vectors/README.md`) before it is
used, and once more when the daemon starts. Which of them a kernel really has is tried with a
throw-away SA; what it lacks is left out of what is offered, and `datapath: auto` lets user space
take over.

What a profile offers by itself is marked with its name. Weak ones need `profile: compat` beside
`proposals` (XF1020).

This page is made from the code; a test compares the two.
"""

FURTHER = """\
Up to seven key exchanges may follow the first one (RFC 9370), each in an exchange of its own:
`ke1_mlkem768` to `ke7_mlkem768`, and so with every name of the table; `ke1_none` beside one makes
it optional. No method is used twice. ML-KEM resists quantum computers as far as anybody knows."""


def page() -> str:
    offered = {name: _offered(name) for name in PROFILES}
    parts = [
        HEAD,
        "## Ciphers\n",
        "| name | for | IV, ICV (octets) | Linux | offered by | weak, because |",
        "|---|---|---|---|---|---|",
        *(_cipher_row(cipher, _profiles(cipher.name, offered)) for cipher in CIPHERS),
        "\n## Integrity\n",
        "For IKE and ESP beside a cipher that has none of its own, and for AH.\n",
        "| name | key, ICV (octets) | Linux | offered by | weak, because |",
        "|---|---|---|---|---|",
        *(
            f"| `{i.name}` | {i.key}, {i.icv} | `{i.kernel_name}` "
            f"| {_profiles(i.name, offered)} | {i.weakness} |"
            for i in INTEGRITY
        ),
        "\n## Pseudorandom functions of IKE\n",
        "| name | offered by | weak, because |",
        "|---|---|---|",
        *(f"| `{p.name}` | {_profiles(p.name, offered)} | {p.weakness} |" for p in PRFS),
        "\n## Key exchange\n",
        "| name | offered by |",
        "|---|---|",
        *(f"| `{g.name}` | {_profiles(g.name, offered)} |" for g in GROUPS),
        f"\n{FURTHER}",
        "",
    ]
    return "\n".join(parts)


def _cipher_row(cipher: Cipher, profiles: str) -> str:
    uses = "IKE, ESP" if cipher.is_for_ike else "ESP"
    iv = f"{cipher.iv}" if not cipher.implicit_iv else "none sent"
    icv = str(cipher.icv) if cipher.is_aead else "that of the integrity algorithm"
    kernel = f"`{cipher.kernel_name}`" if cipher.kernel_name else "user space only"
    return f"| `{cipher.name}` | {uses} | {iv}, {icv} | {kernel} | {profiles} | {cipher.weakness} |"


def _offered(profile: str) -> set[str]:
    return set(_names(profile))


def _names(profile: str) -> Iterator[str]:
    for proposals in (ike_proposals, esp_proposals, ah_proposals):
        for proposal in proposals(profile):
            yield from (str(t).partition("_")[2] or str(t) for t in proposal.transforms)


def _profiles(name: str, offered: dict[str, set[str]]) -> str:
    return ", ".join(profile for profile, names in offered.items() if name in names)


def test_the_page_of_algorithms_is_the_table() -> None:
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())

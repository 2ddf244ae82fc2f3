"""Every page is found, its links lead somewhere, and its examples are what the program takes.

The tutorial's commands are run in `integration/test_first_tunnel.py`, plays in `test_ansible.py`.
"""

from __future__ import annotations

import os
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.documentation import PAGES, ROOT, Block, anchors, blocks, links, prose, text_of
from tests.keypairs import key_pair
from tests.pages import PEERS, TABLES, with_exports, with_table
from tests.pki.chains import Entity, authority, dns
from xfrmpy.cli.main import app, run
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.daemon import __main__ as daemon
from xfrmpy.daemon import blocking
from xfrmpy.policy.load import LoadedPolicy, load_policy
from xfrmpy.policy.pairing import pair_policies

BLOCKS = [block for page in PAGES for block in blocks(page)]
POLICIES = [
    b
    for b in BLOCKS
    if b.language == "yaml" and "/conf.d/" in b.name and "certificates" not in b.page
    if "pkcs11:" not in b.text  # That one is tried with the token that it names, in `integration/`.
]
"""But those that need an authority, whose page is run by `tests/cli/test_cert.py`."""

COMMANDS = [(b, c.text) for b in BLOCKS if b.language == "console" for c in b.commands()]
PARSERS = {"daemon": daemon.option_parser, "block": blocking.option_parser}
OTHER_YAML = ("inventory.yml", "mesh.yml", "prometheus.yml")
"""Files that other tests read."""


def test_every_page_is_linked_from_the_index() -> None:
    linked = {_target("docs/README.md", link)[0] for link in links("docs/README.md")}
    pages = {page for page in PAGES if page.startswith("docs/")} - {"docs/README.md"}
    assert pages - linked == set()
    assert any(_target("README.md", link)[0] == "docs/README.md" for link in links("README.md"))


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_dead(page: str) -> None:
    for link in links(page):
        target, anchor = _target(page, link)
        assert (ROOT / target).exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}"


def _target(page: str, link: str) -> tuple[str, str]:
    path, _, anchor = link.partition("#")
    where = os.path.normpath(Path(page).parent / path) if path else page
    return where, anchor


def test_every_block_is_of_a_kind_that_some_test_reads() -> None:
    """An example in a language that nobody checks, or without the name of its file, is refused."""
    kinds = {"console", "yaml", "ini", "json", "text", "mermaid", "conf"}
    for block in BLOCKS:
        if block.language:
            assert block.language in kinds, str(block)
        if block.language == "yaml":
            is_play = block.text.startswith("- ")
            assert is_play or "/conf.d/" in block.name or block.name in OTHER_YAML, str(block)
        if block.language == "conf":
            assert block.name.endswith((".conf", ".secrets")), str(block)


@pytest.mark.parametrize("block", POLICIES, ids=str)
def test_every_policy_loads(tmp_path: Path, block: Block) -> None:
    loaded = load_example(tmp_path, block)
    assert loaded.errors == ()
    assert {w.code for w in loaded.warnings} <= ({"XF1020"} if "compat" in block.text else set())
    assert loaded.tunnels or loaded.shunts


def load_example(place: Path, block: Block) -> LoadedPolicy:
    """The policy of a block, with secrets for what it names."""
    (place / "conf.d").mkdir(parents=True)
    (place / "secrets").mkdir()
    text = re.sub(r"file:(?=/)", f"file:{place}/secrets", block.text)
    (place / "conf.d" / Path(block.name).name).write_text(text)
    names = {*re.findall(r"secret:([\w.-]+)", text)}
    files = [place / "secrets" / name for name in names]
    files += [Path(found) for found in re.findall(r"file:(/[\w./-]+)", text)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)
        signs = f"key: secret:{file.name}" in text
        file.write_bytes(key_pair(KeyKind.ED25519).pkcs8() if signs else b"x" * 32)
        if file.name == "users":
            file.write_text(_of_page("# /etc/xfrmpy/users\n", block.page))
    for name in re.findall(r"\bca: ([\w-]+)", text):
        (place / "cas").mkdir(exist_ok=True)
        (place / "cas" / f"{name}.pem").write_bytes(_pem(_authority()))
    for identity, name in re.findall(r"\bid: ([\w.-]+), cert: ([\w-]+)", text):
        leaf = _authority().issue(identity, names=[dns(identity)], **_dates())
        for file, data in (
            (place / "certs" / f"{name}.pem", _pem(leaf)),
            (place / "keys" / f"{name}.key", _key_pem(leaf)),
        ):
            file.parent.mkdir(exist_ok=True)
            file.touch(0o600)
            file.write_bytes(data)
    return load_policy([place / "conf.d"])


def _of_page(first_line: str, page: str) -> str:
    (found,) = (b.text for b in BLOCKS if b.page == page and b.text.startswith(first_line))
    return found


@cache
def _authority() -> Entity:
    return authority("an example", **_dates())


def _dates() -> dict[str, datetime]:
    now = datetime.now(UTC).replace(microsecond=0)
    return {"start": now - timedelta(days=1), "end": now + timedelta(days=90)}


def _key_pem(entity: Entity) -> bytes:
    return entity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _pem(entity: Entity) -> bytes:
    return entity.library.public_bytes(Encoding.PEM)


@pytest.mark.parametrize(("block", "text"), COMMANDS, ids=str)
def test_every_command_of_ours_is_one(block: Block, text: str) -> None:
    for arguments in _calls_of_ours(text):
        _parse(arguments)
    assert block.language == "console"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_named_in_a_sentence_is_one(page: str) -> None:
    """`xfrmpy apply --confirm 120s`; of one with a placeholder, its options are looked at."""
    for code in re.findall(r"`(xfrmpy [a-z][^`]*)`", prose(page)):
        name, *rest = code.removeprefix("xfrmpy ").replace("\\|", "|").split()
        command = _command(name)
        for option in (word for word in rest if word.startswith("-") and word != "-"):
            assert option.split("=")[0].rstrip(",]") in _options(name, command), f"{page}: {code}"


def _simple_commands(text: str) -> Iterator[list[str]]:
    """The words between what separates commands; what stands in quotes is one of them."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.commenters = "#"
    is_between = lambda word: bool(re.fullmatch(r"[|;&()]+", word))  # noqa: E731
    for between, words in groupby(lexer, is_between):
        if not between:
            yield [*words]


def _calls_of_ours(text: str) -> Iterator[list[str]]:
    """The arguments of each `xfrmpy` in a line of a shell, whatever is before it."""
    for whole in _simple_commands(text):
        words = whole[: next((n for n, w in enumerate(whole) if re.match(r"[<>]", w)), None)]
        if words[-1:] == ["2"]:  # of 2>
            words.pop()
        if "xfrmpy" in words and "apt" not in words:
            at = words.index("xfrmpy")
            if words[0] not in ("systemctl", "journalctl", "chown") and "install" not in words[:at]:
                yield words[at + 1 :]


@cache
def _root() -> Any:
    return typer.main.get_command(app)


def _parse(arguments: list[str]) -> None:
    root = _root()
    with root.make_context("xfrmpy", list(arguments)) as context:
        words: list[str] = [*context._protected_args, *context.args]
    name, *rest = words
    if name in PARSERS:
        parser: ArgumentParser = PARSERS[name]()
        parser.parse_args(rest)
        return
    command = _command(name)
    if hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    with command.make_context(name, rest):
        pass


def _command(name: str) -> Any:
    root = _root()
    assert name in root.commands, f"there is no command {name}"
    return root.commands[name]


def _options(name: str, command: Any) -> set[str]:
    if name in PARSERS:
        return {o for action in PARSERS[name]()._actions for o in action.option_strings}
    within = [command, *getattr(command, "commands", {}).values()]
    return {o for each in within for p in each.params for o in p.opts} | {"--help"}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_as_the_code_has_it(name: str) -> None:
    page, _ = TABLES[name]
    assert with_table(text_of(page), name) == text_of(page)


@pytest.mark.parametrize("page", PEERS)
def test_the_other_end_on_a_page_is_what_is_exported_and_is_its_pair(
    page: str, tmp_path: Path
) -> None:
    assert with_exports(page, text_of(page)) == text_of(page)
    files = {Path(b.name).name: b.text for b in blocks(page) if b.language == "conf"}
    configuration, secrets = files.values()
    for name, text in (("it.conf", configuration), ("ipsec.secrets", secrets)):
        (tmp_path / name).write_text(
            text.replace("0x...", "0x" + "78" * 32).replace("...", "x" * 32)
        )
    if "strongswan" in page:
        with (tmp_path / "it.conf").open("a") as file:
            file.write((tmp_path / "ipsec.secrets").read_text())
    into = ("--into", str(tmp_path / "there"))
    assert run(["import", str(tmp_path / "it.conf"), *into]) == 0
    theirs = load_policy([tmp_path / "there/conf.d"])
    policy = next(b for b in blocks(page) if b.language == "yaml")
    ours = load_example(tmp_path / "here", policy)
    (pairing,) = pair_policies(ours.tunnels, theirs.tunnels)
    assert pairing.works, pairing.disagreements


def test_both_ends_on_the_page_of_our_own_are_a_pair(tmp_path: Path) -> None:
    pages = [b for b in blocks("docs/peer-xfrmpy.md") if b.language == "yaml"]
    ends = [load_example(tmp_path / b.name.replace("/", "-")[-8:], b).tunnels for b in pages]
    (pairing,) = pair_policies(*ends)
    assert (pairing.works, pairing.disagreements) == (True, ())


def test_units_and_documents_are_what_they_say() -> None:
    for block in BLOCKS:
        if block.language == "json":
            yaml.safe_load(block.text)
        if block.language == "ini":
            assert re.search(r"^\[(Unit|Service|Install)\]$", block.text, re.MULTILINE), str(block)

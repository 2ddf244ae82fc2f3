"""No secret in anything that is shown, no comparison of one that takes its time, no core dump.

Two ends come up with every kind of secret there is, and what they hold is searched for octets that
nobody may see. What is shown is whatever has a `repr`, a `str` or a JSON form.
"""

from __future__ import annotations

import ast
import base64
import dataclasses
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.ike.conftest import Host, Pair, mirrored, tunnel_policy
from tests.keypairs import private_key, public_key
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.daemon.datapaths import Placement
from xfrmpy.daemon.description import ike_sa_details, policy_status
from xfrmpy.daemon.narration import narrate
from xfrmpy.daemon.status import tunnel_status
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.ike import auth as auth_module
from xfrmpy.ike.outputs import DefectFound
from xfrmpy.policy.changes import compare_policies
from xfrmpy.policy.model import Ppk, SharedKey, TunnelPolicy
from xfrmpy.policy.pairing import pair_policies

PACKAGE = Path(__file__).parent.parent / "xfrmpy"
PSK = b"the shared key that nobody sees!"
PPK = b"the post-quantum key unseen too!"
OTHER = b"a secret of somebody else's only"
LEAST = 8
"""Octets: fewer of them in a row may be there by chance."""


def policies() -> tuple[TunnelPolicy, TunnelPolicy]:
    """Shared keys one way, signatures the other, a PPK, tickets and tokens."""
    moon = replace(
        tunnel_policy(ike="aes128gcm16-prfsha256-x25519-ke1_mlkem768"),
        shared_key=SharedKey(octets=PSK, origin="secrets/psk"),
        ppks=(Ppk(id="office", key=SharedKey(octets=PPK, origin="secrets/ppk")),),
        resumption=True,
    )
    sun = mirrored(moon)
    ours, theirs = private_key(KeyKind.ED25519, "moon"), public_key(KeyKind.ED25519, "moon")
    return replace(moon, local_key=ours), replace(sun, remote_key=theirs)


@pytest.fixture
def pair() -> Pair:
    return Pair(*policies(), secrets=True, keeps=True)


def forms(secret: bytes) -> Iterator[str]:
    """How octets may look in a text."""
    yield repr(secret)[2:-1]
    yield secret.hex()
    yield base64.b64encode(secret).decode().rstrip("=")
    yield str(list(secret))[1:-1]


def assert_unseen(text: str, secrets: set[bytes], where: str) -> None:
    for secret in secrets:
        for form in forms(secret):
            assert form not in text, f"{where} shows a secret"


def secrets_of(host: Host) -> set[bytes]:
    """Every key of an end: of its policy, its IKE SAs, its SAs and its tickets."""
    found = {PSK, PPK, b"secret of " + host.name.encode()}
    if host.policy.local_key is not None:
        found.add(host.policy.local_key.octets)
    for sa in host.ike_sas:
        if sa.keys is not None:
            found |= {getattr(sa.keys, field.name) for field in dataclasses.fields(sa.keys)}
        if sa.ticket is not None:
            found |= {sa.ticket.sk_d, sa.ticket.binding}
    for entry in host.datapath.dump().sad:
        for field in dataclasses.fields(entry):
            value = getattr(entry, field.name)
            if "key" in field.name and isinstance(value, bytes):
                found.add(value)
        found |= set(_octets_of_keys(entry))
    return {secret for secret in found if len(secret) >= LEAST}


def _octets_of_keys(thing: Any) -> Iterator[bytes]:
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if isinstance(value, bytes) and not field.repr:
            yield value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _octets_of_keys(value)


def reachable(root: object) -> Iterator[object]:
    """Everything of ours that an object holds, at any depth, once."""
    seen: set[int] = set()
    waiting: list[object] = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, dict):
            waiting += [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | tuple | set | frozenset):
            waiting += thing
        elif type(thing).__module__.startswith("xfrmpy."):
            yield thing
            names = {n for kind in type(thing).__mro__ for n in getattr(kind, "__slots__", ())}
            names |= set(getattr(thing, "__dict__", ()))
            waiting += [getattr(thing, name, None) for name in names]


def test_no_object_of_the_core_shows_one(pair: Pair) -> None:
    pair.up()
    pair.assert_up()
    pair.moon.endpoint.rekey_child_sas("tunnel-a", pair.now)
    pair.deliver()
    kinds: set[type] = set()
    for host in (pair.moon, pair.sun):
        secrets = secrets_of(host)
        assert len(secrets) > 10
        for thing in reachable([host.endpoint, host.policy, host.outputs, host.datapath.dump()]):
            kinds.add(type(thing))
            assert_unseen(repr(thing), secrets, f"repr of {type(thing).__name__}")
            assert_unseen(str(thing), secrets, f"str of {type(thing).__name__}")
    names = {kind.__name__ for kind in kinds}
    expected = {"IkeSa", "IkeKeys", "SharedKey", "Ppk", "PrivateKey", "SadEntry", "HeldTicket"}
    assert names >= {*expected, "TunnelPolicy", "AddSa", "Persist", "TicketKeys"}


def test_nothing_that_the_daemon_says_shows_one(pair: Pair) -> None:
    pair.up()
    for host in (pair.moon, pair.sun):
        secrets, tunnel = secrets_of(host), Tunnel(Placement(policy=host.policy))
        said: list[Any] = [tunnel_status(tunnel, host.views, None, pair.now)]
        said += [policy_status(host.policy)]
        said += [ike_sa_details(view, pair.now) for view in host.views]
        changes = compare_policies([host.policy], [_changed(host.policy)])
        said += [difference for change in changes for difference in change.differences]
        pairings = pair_policies([host.policy], [_changed(host.policy)])
        said += [told for pairing in pairings for told in pairing.disagreements]
        for answer in said:
            assert_unseen(repr(answer), secrets, type(answer).__name__)
            assert_unseen(json.dumps(dataclasses.asdict(answer), default=str), secrets, "a reply")
        for output in host.outputs:
            assert_unseen(str(narrate(output)), secrets, f"the log of {type(output).__name__}")


def _changed(policy: TunnelPolicy) -> TunnelPolicy:
    other = SharedKey(octets=OTHER, origin="secrets/other")
    return replace(policy, shared_key=other, ppks=(Ppk(id="office", key=other),))


def test_a_defect_shows_none_in_its_traceback_and_its_log(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Local variables of a frame are in no traceback of ours."""

    def fail(*_: object, **__: object) -> None:
        secret = PSK + PPK
        raise RuntimeError(f"{len(secret)} octets")

    for host in (pair.moon, pair.sun):
        host.expects_defects = True
    monkeypatch.setattr(auth_module, "install_first_child", fail)
    caplog.set_level(logging.DEBUG)
    pair.up()
    defects = [d for host in (pair.moon, pair.sun) for d in host.reports(DefectFound)]
    assert defects
    for defect in defects:
        assert_unseen(f"{defect!r} {defect.traceback} {narrate(defect)}", {PSK, PPK}, "a defect")
    assert_unseen(caplog.text, {PSK, PPK}, "the log")


def test_an_exception_by_a_wrong_secret_does_not_quote_it() -> None:
    moon, sun = policies()
    pair = Pair(_changed(moon), sun)
    pair.up()
    for host in (pair.moon, pair.sun):
        for output in host.outputs:
            assert_unseen(repr(output), {PSK, PPK, OTHER}, type(output).__name__)


def test_an_object_that_cannot_be_made_does_not_quote_its_secret() -> None:
    with pytest.raises(TypeError) as raised:
        SharedKey(octets=PSK)  # type: ignore[call-arg]
    assert_unseen("".join(traceback.format_exception(raised.value)), {PSK}, "a TypeError")


# Comparisons.

SECRETIVE = re.compile(
    r"\b(octets|secrets?|sk_[a-z]{1,2}|binding|token|password|icv|mac|digest|print|ppk|msk"
    r"|auth\.data|authenticator|_secret\(.*|response)\b(?!\.(type|identifier)\b)"
)
WITHOUT_SECRETS = {
    "crypto/prf.py": {"row.mac == 'aesxcbc'"},
    "crypto/self_test.py": {
        # Both are our own, of a moment.
        "exchange.shared_secret(answer.public_value) != answer.shared_secret()"
    },
    "crypto/cipher.py": {"self.icv_size >= self.block - 1"},  # sizes
    "pki/ocsp.py": {"answer.responder_key_hash == digest"},  # of a public key
    "cli/demo.py": {"got['octets'] == sent['octets']"},  # sizes
    "cli/join.py": {"token == '-'"},
    "datapath/userspace/virtio.py": {"octets[:SIZE] == NOTHING"},  # a header
    "ipsec/algorithms.py": {"icv == 8"},  # a size
    "policy/ppk.py": {"ppk.id_octets in found", "written.secret.scheme != 'file'"},  # names
    "radius/packet.py": {"octets[1] != request.identifier"},
    "tokens/access.py": {"self._refused.get(token) == pin"},  # both are the operator's
    "ike/cookies.py": {"secret.version == cookie[0]"},  # which secret it is, in clear
    "ike/admission.py": {"self._answered.get(admitted.request.digest) == spi"},  # of a message
    "store/sqlite.py": {"self._seal.open(_HEAD, head) != self._digest.octets()"},  # sealed before
}
"""What looks like a secret and is none, or is compared with nothing that a stranger has sent."""


def comparisons(text: str) -> Iterator[str]:
    """Whatever is compared by `==` or its like, with what could be a secret among it."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Compare):
            continue
        sides = [side for side in (node.left, *node.comparators) if not _is_plain(side)]
        is_equality = any(isinstance(op, ast.Eq | ast.NotEq | ast.In) for op in node.ops)
        if is_equality and any(SECRETIVE.search(ast.unparse(side)) for side in sides):
            yield ast.unparse(node)


def _is_plain(side: ast.expr) -> bool:
    """A length tells nothing; a constant is no secret."""
    is_length = isinstance(side, ast.Call) and ast.unparse(side.func) == "len"
    return is_length or isinstance(side, ast.Constant)


ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_peer_sends_is_compared_with_secrets_in_constant_time(room: str) -> None:
    for path in sorted((PACKAGE / room).rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        found = set(comparisons(path.read_text())) - WITHOUT_SECRETS.get(file, set())
        assert not found, f"{file}: {found} takes longer the more is right; hmac.compare_digest"


@pytest.mark.parametrize(
    "line",
    [
        "ok = auth.data == expected",
        "if binding != held.binding: pass",
        "known = token in tokens",
        "same = a.secret == b.secret",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert list(comparisons(line))


def test_the_search_passes_over_what_is_no_secret() -> None:
    assert not list(comparisons("a = len(token) == 16\nb = name == other\nc = mac is None"))


# Core dumps.

ABORT = """
import os, resource, signal, sys
from xfrmpy.datapath.dumps import forbid_dumps
os.chdir(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if sys.argv[2] == "forbidden":
    forbid_dumps()
os.kill(os.getpid(), signal.SIGABRT)
"""


@pytest.mark.parametrize("mode", ["allowed", "forbidden"])
def test_an_aborted_process_with_keys_leaves_no_core(tmp_path: Path, mode: str) -> None:
    """Told by the kernel itself (WCOREDUMP), wherever it would have put the dump."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip(f"this host lets nobody dump ({soft})")
    argv = [sys.executable, "-c", ABORT, str(tmp_path), mode]
    process = subprocess.Popen(argv)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -signal.SIGABRT
    assert os.WTERMSIG(status) == signal.SIGABRT
    if mode == "forbidden":
        assert not os.WCOREDUMP(status)
        assert not list(tmp_path.iterdir())
    elif not os.WCOREDUMP(status):
        pytest.skip("this host writes no core dumps at all")
    for dump in tmp_path.iterdir():
        dump.unlink()

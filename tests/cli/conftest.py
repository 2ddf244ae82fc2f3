"""A daemon that gives the answers of a test over a real socket, and the golden files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.statuses import OFFICE
from xfrmpy.control.kernel import (
    DefaultInForce,
    ErrorCounter,
    InterfaceInForce,
    KernelReply,
    PolicyInForce,
    SaInForce,
    TemplateInForce,
)
from xfrmpy.control.observed import (
    ChildPolicyStatus,
    ChildSaDetails,
    DescribeReply,
    Event,
    EventsReply,
    IkeSaDetails,
    MetricsReply,
    PolicyStatus,
    WaitReply,
)
from xfrmpy.control.plans import ChangeReply, DifferenceReply, DriftReply, KeepReply, PlanReply
from xfrmpy.control.protocol import (
    APPLY,
    CONFIRM,
    DESCRIBE,
    DOWN,
    METRICS,
    MONITOR,
    PLAN,
    REKEY,
    ROLLBACK,
    SHOW_KERNEL,
    SOCKET_NAME,
    STATUS,
    UP,
    WAIT,
    FailureReply,
    Progress,
    StatusReply,
    TunnelReply,
    TunnelStatus,
    encode_failure,
    encode_reply,
)

GOLDEN = Path(__file__).parent / "golden"

BRANCH = replace(
    OFFICE,
    name="branch",
    state="down",
    peer="203.0.113.7",
    local_address="",
    remote_address="",
    local_id="gw1.example.net",
    remote_id="203.0.113.7",
    role="",
    suite="",
    nat="",
    datapath="kernel",
    datapath_reason="",
    seconds_up=0.0,
    spi_i="",
    spi_r="",
    children=[],
    failure=FailureReply(
        code="XF2005",
        summary="203.0.113.7 answered AUTHENTICATION_FAILED to IKE_AUTH",
        evidence=[["we are", "gw1.example.net"], ["our key is from", "/etc/xfrmpy/secrets/branch"]],
    ),
)
LAB = replace(
    BRANCH, name="lab", state="connecting", peer="192.0.2.99", failure=None, datapath="userspace"
)
STATUS_REPLY = StatusReply(
    version="0.1.0",
    pid=4242,
    seconds_up=90_061.0,
    drops={"unknown-spi": 12, "malformed": 1_205, "rate-limited": 0},
    tunnels=[BRANCH, LAB, OFFICE],
)
STEPS = (
    Progress(tunnel="office", seconds=0.0, text="IKE_SA_INIT to 198.51.100.1:500"),
    Progress(tunnel="office", seconds=0.012, text="IKE_AUTH to 198.51.100.1:4500"),
)
EVENTS = [
    Event(
        number=41,
        time="2025-11-25T17:00:00.125Z",
        monotonic=100.5,
        tunnel="office",
        child="",
        event="peer-moved",
        severity="info",
        text="the peer is now at 198.51.100.1:4500, it was at 198.51.100.1:1024",
        code="",
        failure=None,
        details={"old": "198.51.100.1:1024", "new": "198.51.100.1:4500"},
    ),
    Event(
        number=42,
        time="2025-11-25T17:00:01.500Z",
        monotonic=101.875,
        tunnel="branch",
        child="",
        event="tunnel-failed",
        severity="warning",
        text="closed: XF2005 203.0.113.7 answered AUTHENTICATION_FAILED to IKE_AUTH\x1b[2J",
        code="XF2005",
        failure=BRANCH.failure,
        details={"was_established": "no", "is_initiator": "yes"},
    ),
]
POLICY = PolicyStatus(
    origin="/etc/xfrmpy/conf.d/office.yaml:1",
    start="auto",
    key_from="/etc/xfrmpy/secrets/office",
    ppks=["office-2026 (/etc/xfrmpy/secrets/office-ppk)"],
    ppk_required=True,
    proposals=["aes256gcm16-prfsha384-x25519", "aes128gcm16-prfsha256-x25519"],
    lifetime_seconds=14_400.0,
    reauth_seconds=None,
    dpd_seconds=30.0,
    children=[
        ChildPolicyStatus(
            child="office",
            mode="tunnel",
            local=["10.1.0.0/16"],
            remote=["10.2.0.0/16", "10.3.0.0/24"],
            proposals=["aes256gcm16-x25519-esn", "aes256gcm16-esn"],
            lifetime_seconds=3600.0,
        )
    ],
)
IKE_SA = IkeSaDetails(
    state="established",
    role="initiator",
    suite=OFFICE.suite,
    spi_i=OFFICE.spi_i,
    spi_r=OFFICE.spi_r,
    local_address=OFFICE.local_address,
    remote_address=OFFICE.remote_address,
    seconds_established=11_520.5,
    rekey_in_seconds=1_000.0,
    reauth_in_seconds=None,
)
CHILD_SA = ChildSaDetails(
    child="office", spi_in="0xc0ffee01", rekey_in_seconds=2_700.25, expires_in_seconds=3_299.0
)
CHANGES = [
    ChangeReply(
        tunnel="lab", action="delete", impact="replace", live=True, cuts=True, differences=[]
    ),
    ChangeReply(
        tunnel="office",
        action="update",
        impact="reauth",
        live=True,
        cuts=False,
        differences=[
            DifferenceReply(key="peer_id", child="", before="sun", after="luna", impact="reauth"),
            DifferenceReply(
                key="local",
                child="lan",
                before="10.1.0.0/16",
                after="10.1.0.0/16, 10.9.0.0/16",
                impact="replace",
            ),
            DifferenceReply(
                key="children",
                child="voice",
                before="",
                after="10.1.9.0/24 to 10.2.9.0/24",
                impact="hot",
            ),
        ],
    ),
    ChangeReply(
        tunnel="branch", action="create", impact="hot", live=False, cuts=False, differences=[]
    ),
]
DRIFT = [
    DriftReply(
        finding="route-missing",
        what="the route to 10.2.0.0/16 is missing",
        tunnel="",
        child="",
        remedy="put back",
    ),
    DriftReply(
        finding="sa-missing",
        what="the inbound SA ESP 0xc0ffee01 to 192.0.2.1 is missing",
        tunnel="office",
        child="lan",
        remedy="its Child SA is rekeyed",
    ),
    DriftReply(
        finding="policy-shadowed",
        what="the out policy 10.1.0.0/16 -> 10.2.0.0/16 is overruled by another program's",
        tunnel="office",
        child="lan",
        remedy="",
    ),
]
PLAN_REPLY = PlanReply(
    changes=CHANGES,
    drift=DRIFT,
    warnings=["/etc/xfrmpy/conf.d/branch.yaml:3:6: XF1015: the secret is short"],
    directory="/etc/xfrmpy/conf.d",
)
SA = SaInForce(
    datapath="kernel",
    owner="ours",
    tunnel="office",
    child="lan",
    direction="in",
    spi="0xc0ffee01",
    protocol="esp",
    mode="tunnel",
    source="198.51.100.1",
    destination="192.0.2.1",
    reqid=0x58460007,
    suite="aes256gcm16-esn",
    octets=1_288_490_188,
    packets=1_203_112,
    replayed=3,
    integrity_failed=1,
    seconds_old=301.0,
    seconds_idle=0.5,
    limits={"soft_seconds": 3300, "hard_seconds": 3600},
    options={"encapsulation": "espinudp 4500 to 4500", "replay_window": "256"},
)
POLICY_IN_FORCE = PolicyInForce(
    datapath="kernel",
    owner="ours",
    tunnel="office",
    child="lan",
    direction="in",
    selector="10.2.0.0/16 -> 10.1.0.0/16 tcp dport 443",
    action="protect",
    priority=96_904,
    index=1_480_982_528,
    templates=[
        TemplateInForce(
            protocol="esp",
            mode="tunnel",
            reqid=0x58460007,
            source="198.51.100.1",
            destination="192.0.2.1",
            optional=False,
        )
    ],
    options={"if_id": "7"},
)
KERNEL_REPLY = KernelReply(
    sas=[
        SA,
        replace(SA, direction="out", spi="0xdeadbeef", octets=512, replayed=0, integrity_failed=0),
        replace(
            SA,
            owner="foreign",
            tunnel="",
            child="",
            direction="",
            spi="0x00000101",
            protocol="ah",
            mode="transport",
            reqid=7,
            suite="hmac(sha256)\x1b[2J 256/128",
            limits={},
            options={},
        ),
    ],
    policies=[
        POLICY_IN_FORCE,
        replace(
            POLICY_IN_FORCE,
            owner="foreign",
            tunnel="",
            child="",
            direction="out",
            selector="10.77.0.0/16 -> 10.78.0.0/16",
            action="discard",
            priority=5,
            index=17,
            templates=[],
            options={},
        ),
        replace(
            POLICY_IN_FORCE,
            owner="socket",
            tunnel="",
            child="",
            direction="socket-out",
            selector="any -> any",
            action="bypass",
            priority=0,
            index=28,
            templates=[],
            options={},
        ),
    ],
    defaults=[
        DefaultInForce(owner="foreign", direction="in", action="discard"),
        DefaultInForce(owner="", direction="out", action="bypass"),
        DefaultInForce(owner="ours", direction="fwd", action="discard"),
    ],
    interfaces=[
        InterfaceInForce(
            name="xfrm-office",
            kind="xfrm",
            up=True,
            mtu=1418,
            if_id=7,
            underlying="eth0",
            addresses=["169.254.10.1/30"],
            tunnels=["office"],
        )
    ],
    errors=[
        ErrorCounter(
            datapath="kernel",
            name="XfrmInNoStates",
            count=12,
            meaning="a packet bears an SPI that no SA of ours has",
            look_at="`xfrmpy status TUNNEL` at both ends",
        ),
        ErrorCounter(
            datapath="kernel", name="XfrmInError", count=0, meaning="anything", look_at=""
        ),
        ErrorCounter(
            datapath="userspace",
            name="replayed",
            count=1_205,
            meaning="a packet was replayed",
            look_at="`replayed` of each SA",
        ),
    ],
    unread={"userspace": "cannot ask the userspace worker: it has ended"},
)
UNKNOWN = FailureReply(
    code="XF1013", summary="no tunnel is called nowhere", evidence=[["known", "branch, office"]]
)


class CannedDaemon:
    """Knows the tunnels above: `office` is brought up in two steps, `branch` is refused."""

    def __init__(self, runtime_dir: Path) -> None:
        self.runtime_dir = runtime_dir
        self.status = STATUS_REPLY
        self.plan = PLAN_REPLY
        self.keeps = KeepReply(files=None, prune=False, directory="/etc/xfrmpy/conf.d")
        self.changed = True
        self.warning: FailureReply | None = None
        self.holds = False
        self.missed = 0
        self.called = threading.Event()
        self.calls: list[tuple[str, str | None]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(runtime_dir / SOCKET_NAME))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # A watcher has two connections at a time.
            threading.Thread(target=self._serve_one, args=(connection,), daemon=True).start()

    def _serve_one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        octets = b""
        while not octets.endswith(b"\0"):
            octets += connection.recv(4096)
        call = json.loads(octets[:-1])
        tunnel = call["parameters"].get("tunnel")
        self.calls.append((call["method"], tunnel))
        for answer in self._answers(call["method"], tunnel):
            connection.sendall(answer)
        self.called.set()
        if self.holds:
            connection.recv(1)

    def _answers(self, method: str, tunnel: str | None) -> Iterator[bytes]:
        known = {known.name: known for known in self.status.tunnels}
        if tunnel is not None and tunnel not in known:
            yield encode_failure(UNKNOWN)
        elif method == STATUS:
            chosen = self.status.tunnels if tunnel is None else [known[tunnel]]
            yield encode_reply(replace(self.status, tunnels=chosen))
        elif method == DESCRIBE and tunnel is not None:
            yield encode_reply(_description(known[tunnel]))
        elif method == SHOW_KERNEL:
            yield encode_reply(_kernel(tunnel))
        elif method == METRICS:
            yield encode_reply(MetricsReply(text='xfrmpy_child_up{tunnel="a",child="b"} 1\n'))
        elif method == PLAN:
            yield encode_reply(self.plan)
        elif method in (APPLY, ROLLBACK):
            yield encode_reply(Progress(tunnel="lab", seconds=0.5, text="delete"), continues=True)
            yield encode_reply(self.plan)
        elif method == CONFIRM:
            yield encode_reply(self.keeps)
        elif method == MONITOR:
            chosen_events = [e for e in EVENTS if tunnel in (None, e.tunnel)]
            reply = EventsReply(events=chosen_events, missed=self.missed)
            yield encode_reply(reply, continues=self.holds)
        elif method == WAIT and tunnel is not None:
            yield encode_reply(WaitReply(tunnel=known[tunnel]))
        elif method in (UP, DOWN, REKEY) and tunnel is not None:
            yield from self._change(method, known[tunnel])

    def _change(self, method: str, tunnel: TunnelStatus) -> Iterator[bytes]:
        if self.changed:
            yield from (encode_reply(step, continues=True) for step in STEPS)
        if self.holds:
            return
        if method == UP and tunnel.failure is not None:
            yield encode_failure(tunnel.failure)
        else:
            after = replace(tunnel, state="down" if method == DOWN else "up")
            reply = TunnelReply(changed=self.changed, tunnel=after, warning=self.warning)
            yield encode_reply(reply)


def _kernel(tunnel: str | None) -> KernelReply:
    return replace(
        KERNEL_REPLY,
        sas=[sa for sa in KERNEL_REPLY.sas if tunnel in (None, sa.tunnel)],
        policies=[p for p in KERNEL_REPLY.policies if tunnel in (None, p.tunnel)],
    )


def _description(tunnel: TunnelStatus) -> DescribeReply:
    events = [event for event in EVENTS if event.tunnel == tunnel.name]
    is_up = tunnel.state == "up"
    return DescribeReply(
        tunnel=tunnel,
        wanted=is_up,
        policy=POLICY,
        ike_sas=[IKE_SA] if is_up else [],
        child_sas=[CHILD_SA] if is_up else [],
        last_failure=None if is_up else events[-1],
        events=events,
    )


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the environment, too. Not pytest's own: a socket's path has 107 octets at most."""
    directory = Path(tempfile.mkdtemp(prefix="xfrmpy-test-"))
    monkeypatch.setenv("XFRMPY_RUNTIME_DIR", str(directory))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "XFRMPY_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def daemon(runtime_dir: Path) -> Iterator[CannedDaemon]:
    canned = CannedDaemon(runtime_dir)
    yield canned
    canned.close()


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compares with a golden file; with XFRMPY_UPDATE_GOLDEN set, writes it."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("XFRMPY_UPDATE_GOLDEN"):
            path.write_text(text)
        assert text == path.read_text()

    return compare


@pytest.fixture
def empty_status() -> StatusReply:
    return replace(STATUS_REPLY, drops={}, tunnels=[])


@pytest.fixture
def hostile_status() -> StatusReply:
    """A peer whose identity would clear the screen."""
    hostile: Any = replace(OFFICE, remote_id="\x1b[2J\x1b]0;owned\x07evil\u202e")
    return replace(STATUS_REPLY, tunnels=[hostile])

"""`xfrmpy invite` and `join`, but for the daemon that puts the policy in force."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from xfrmpy.cli.join import Ours, invite, join
from xfrmpy.control.calls import PolicyText
from xfrmpy.failures import ExitCode, OperatorError

Captured = pytest.CaptureFixture[str]
ADDRESS = {"moon": "192.0.2.1", "sun": "192.0.2.2"}


class Host:
    """Its configuration; a policy that is put in force is kept there, as the daemon does it."""

    def __init__(self, name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = root / name
        self.ours = Ours(id=None, address=ADDRESS[name], local=(f"10.{len(name)}.0.0/16",))
        self._monkeypatch = monkeypatch
        (self.directory / "conf.d").mkdir(parents=True)

    def __enter__(self) -> Host:
        self._monkeypatch.setenv("XFRMPY_CONFIG_PATH", str(self.directory / "conf.d"))
        return self

    def __exit__(self, *_: object) -> None:
        self._monkeypatch.delenv("XFRMPY_CONFIG_PATH")

    def apply(self, policies: list[PolicyText]) -> int:
        for policy in policies:
            (self.directory / "conf.d" / policy.name).write_text(policy.text)
        return ExitCode.DONE

    def join(self, token: str) -> int:
        with self:
            return join(token, self.ours, self.apply)

    @property
    def policy(self) -> Path:
        return self.directory / "conf.d/office.yaml"


@pytest.fixture
def moon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host("moon", tmp_path, monkeypatch)


@pytest.fixture
def sun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host("sun", tmp_path, monkeypatch)


def invited(moon: Host, capsys: Captured) -> str:
    with moon:
        assert invite("office", moon.ours) == ExitCode.DONE
    return capsys.readouterr().out.strip()


def test_a_reply_that_was_lost_can_be_had_again(moon: Host, sun: Host, capsys: Captured) -> None:
    token = invited(moon, capsys)
    replies = []
    for _ in range(2):
        assert sun.join(token) == ExitCode.DONE
        replies.append(capsys.readouterr().out)
    assert replies[0] == replies[1]
    assert moon.join(replies[0].strip()) == ExitCode.DONE
    with pytest.raises(OperatorError, match="has not invited anybody"):
        moon.join(replies[0].strip())


@pytest.mark.parametrize("end", ["who is invited", "who has invited"])
def test_a_tunnel_of_that_name_is_not_replaced(
    moon: Host, sun: Host, end: str, capsys: Captured
) -> None:
    """The name comes out of the token: whoever made it must not take a tunnel away."""
    token = invited(moon, capsys)
    host, said = sun, token
    if end == "who has invited":
        sun.join(token)
        host, said = moon, capsys.readouterr().out.strip()
    host.policy.write_text("peer: 203.0.113.9\n")
    with pytest.raises(OperatorError) as caught:
        host.join(said)
    assert caught.value.failure.code == "XF1043"
    assert host.policy.read_text() == "peer: 203.0.113.9\n"
    host.policy.unlink()
    assert host.join(said) == ExitCode.DONE


def test_a_token_may_come_by_standard_input(
    moon: Host, sun: Host, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = invited(moon, capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
    assert sun.join("-") == ExitCode.DONE
    assert sun.policy.exists()


@pytest.mark.parametrize("text", ["", "\n", "xfrmpy-invite-1.\n", "x" * 100_000])
def test_what_is_no_token_is_refused(sun: Host, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(OperatorError) as caught:
        sun.join("-")
    assert caught.value.failure.code == "XF5002"
    assert os.listdir(sun.directory / "conf.d") == []


def test_secrets_are_for_their_owner_alone(moon: Host, capsys: Captured) -> None:
    token = invited(moon, capsys)
    for file in ("secrets/host.key", "invitations/office.json"):
        assert (moon.directory / file).stat().st_mode & 0o077 == 0
    assert token.startswith("xfrmpy-invite-1.")

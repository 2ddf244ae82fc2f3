"""Which files of a policy are looked at, and what is taken of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ike.conftest import tunnel_policy
from xfrmpy.daemon import renewal
from xfrmpy.daemon.renewal import Renewal, files_of, renewed
from xfrmpy.policy.model import Certificates, PrivateKey, TunnelPolicy


def certified(place: Path, ders: bytes = b"old") -> TunnelPolicy:
    key = PrivateKey(octets=ders, public=ders, origin=str(place / "gw.key"))
    return replace(
        tunnel_policy(),
        local_key=key,
        local_certificates=Certificates(ders=(ders,), origin=str(place / "gw.pem")),
        remote_authorities=Certificates(ders=(ders,), origin=str(place / "ca.pem")),
    )


def test_certificates_their_key_and_the_list_are_looked_at(tmp_path: Path) -> None:
    names = [Path(path).name for path in files_of(certified(tmp_path))]
    assert names == ["gw.pem", "gw.key", "ca.pem", "ca.crl"]


def test_a_policy_without_certificates_has_no_files() -> None:
    assert files_of(tunnel_policy()) == ()


def test_certificates_are_taken_and_nothing_else(tmp_path: Path) -> None:
    in_force = certified(tmp_path)
    read = replace(certified(tmp_path, b"new"), dpd_seconds=1.0)
    (taken,) = renewed([in_force], [read])
    assert taken == replace(certified(tmp_path, b"new"), dpd_seconds=in_force.dpd_seconds)


def test_a_policy_that_cannot_be_read_or_names_other_files_stays(tmp_path: Path) -> None:
    in_force = certified(tmp_path)
    assert renewed([in_force], []) == (in_force,)
    assert renewed([in_force], [certified(tmp_path / "elsewhere", b"new")]) == (in_force,)


def test_a_change_is_taken_once_and_again_when_it_could_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(renewal, "SETTLE_SECONDS", 0.0)
    answers = [False, True]
    asked: list[bool] = []

    async def renew() -> bool:
        asked.append(answers.pop(0))
        return asked[-1]

    async def look() -> None:
        watching = Renewal(lambda: [certified(tmp_path)], renew)
        task = asyncio.create_task(watching.keep_looking())
        for _ in range(20):
            await asyncio.sleep(0)
        assert asked == []
        (tmp_path / "ca.crl").write_bytes(b"a list")
        for _ in range(40):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(look())
    assert asked == [False, True]

"""Whoever waits for what is fetched is told, whatever happens."""

from __future__ import annotations

import asyncio

import pytest

from xfrmpy.daemon import fetching
from xfrmpy.daemon.fetching import Fetcher


async def told_by(url: str) -> bytes | str:
    told: asyncio.Future[bytes | str] = asyncio.get_running_loop().create_future()
    Fetcher().begin(url, 100, told.set_result)
    return await told


def test_a_refusal_is_told() -> None:
    assert asyncio.run(told_by("ftp://ca.example.net/list")) == "not a plain http URL"


def test_a_defect_on_the_way_is_told_like_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The core asks nothing twice that is under way: of what it was never told it would ask nobody
    any more."""

    async def fail(*_: object) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr(fetching, "fetch", fail)
    assert asyncio.run(told_by("http://ca.example.net/list")) == "RuntimeError in the attempt"
    assert "a defect met 'http://ca.example.net/list'" in caplog.text

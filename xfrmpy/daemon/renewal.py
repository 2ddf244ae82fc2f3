"""Files of certificates, their keys and lists of revocations that change are taken by themselves.

What runs on other hosts renews them at any hour (ACME, cron). Of the rest of the policy nothing is
taken: that is what `apply` is for. A file that cannot be used, for it is half written, changes
nothing: what was there before goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from xfrmpy.policy.model import TunnelPolicy

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Ours, between two looks. A look costs a stat(2) of each file."""

SETTLE_SECONDS = 1.0
"""Ours: a file that goes on changing is being written, and files that belong together come one
after the other."""

Looks = dict[str, tuple[int, int, int] | None]


class Renewal:
    """`policies` are those in force; `renew` takes what their files say now, and is False if that
    has to wait."""

    def __init__(
        self,
        policies: Callable[[], Iterable[TunnelPolicy]],
        renew: Callable[[], Awaitable[bool]],
    ) -> None:
        self._policies = policies
        self._renew = renew
        self._taken = self._look()

    async def keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            seen = self._look()
            if not _has_changed(self._taken, seen):
                self._taken = seen
                continue
            await asyncio.sleep(SETTLE_SECONDS)
            if self._look() == seen and await self._renew():
                self._taken = seen

    def _look(self) -> Looks:
        return {path: _state(path) for policy in self._policies() for path in files_of(policy)}


def files_of(policy: TunnelPolicy) -> tuple[str, ...]:
    """Those of a policy with certificates; a list of revocations need not be there."""
    ours, theirs = policy.local_certificates, policy.remote_authorities
    found = []
    if ours is not None:
        found.append(ours.origin)
        found += [] if policy.local_key is None else [policy.local_key.origin]
    if theirs is not None:
        found += [theirs.origin, str(Path(theirs.origin).with_suffix(".crl"))]
    return tuple(found)


def renewed(
    policies: Iterable[TunnelPolicy], read: Sequence[TunnelPolicy]
) -> tuple[TunnelPolicy, ...]:
    """The policies with certificates, keys and lists as they were read now from the same files."""
    by_name = {policy.name: policy for policy in read}
    return tuple(
        replace(
            policy,
            local_key=now.local_key,
            local_certificates=now.local_certificates,
            remote_authorities=now.remote_authorities,
        )
        if (now := by_name.get(policy.name)) is not None and files_of(now) == files_of(policy)
        else policy
        for policy in policies
    )


def _has_changed(before: Looks, after: Looks) -> bool:
    """Those of tunnels that are new, or are no more, were read with their policy."""
    return any(before[path] != after[path] for path in before.keys() & after.keys())


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino

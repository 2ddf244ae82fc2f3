"""Answers to the core's questions whether certificates are revoked: asked outside, kept on disk.

What is kept is signed by authorities, and is verified whenever it is used; so the directory needs
no trust beyond that of its owner. A daemon that starts goes on with what an earlier one has
learned.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from xfrmpy.daemon.fetching import Fetcher
from xfrmpy.pki.ocsp import MAX_RESPONSE_OCTETS
from xfrmpy.pki.sources import Source, SourceKind
from xfrmpy.pki.verdicts import CertificateRefused

log = logging.getLogger(__name__)

MAX_LIST_OCTETS = 4 * 1024 * 1024
"""Ours: some 100,000 revoked certificates. Looking for one takes twenty milliseconds, during which
the daemon does nothing else."""

MAX_FILES = 256

_ENDINGS = {
    SourceKind.OCSP: ".ocsp",
    SourceKind.CRL: ".crl",
    SourceKind.DELTA: ".delta",
}


class StatusFetcher:
    """`tell` gets what a source has answered, or a sentence that says why it has not."""

    def __init__(self, directory: Path, tell: Callable[[Source, bytes | str], None]) -> None:
        self._directory = directory
        self._tell = tell
        self._fetcher = Fetcher()

    def ask(self, source: Source) -> None:
        """Begin to; `tell` is called when it is done."""
        told = partial(self._told, source)
        self._fetcher.begin(source.url, _limit(source.kind), told, source.request)

    def stop(self) -> None:
        self._fetcher.stop()

    def recall(self, take: Callable[[SourceKind, bytes], None]) -> None:
        """Hand out what is kept; what `take` refuses with `CertificateRefused` goes."""
        kinds = {ending: kind for kind, ending in _ENDINGS.items()}
        for file in self._files():
            kind = kinds.get(file.suffix)
            if kind is None:
                continue
            try:
                with file.open("rb") as opened:
                    take(kind, opened.read(_limit(kind)))
            except (CertificateRefused, OSError) as error:
                log.info("%s is not used any more: %s", file, error)
                file.unlink(missing_ok=True)

    def _told(self, source: Source, answer: bytes | str) -> None:
        outcome = answer if isinstance(answer, str) else f"{len(answer)} octets"
        log.info("%s of %s: %s", source.kind, source.url, outcome)
        self._tell(source, answer)
        if isinstance(answer, bytes):
            asyncio.get_running_loop().run_in_executor(None, self._keep, source, answer)

    def _keep(self, source: Source, answer: bytes) -> None:
        digest = hashlib.sha256("\0".join(source.key).encode()).hexdigest()[:32]
        file = self._directory / (digest + _ENDINGS[source.kind])
        new = file.with_suffix(f"{file.suffix}.new")
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            for old in self._files()[:-MAX_FILES]:
                old.unlink(missing_ok=True)
            new.write_bytes(answer)
            os.replace(new, file)
        except OSError as error:
            log.warning("what %s has answered cannot be kept: %s", source.url, error)

    def _files(self) -> list[Path]:
        """The oldest first."""
        try:
            with os.scandir(self._directory) as entries:
                found = [(entry.stat().st_mtime, Path(entry)) for entry in entries]
        except OSError:
            return []
        return [path for _, path in sorted(found)]


def _limit(kind: SourceKind) -> int:
    return MAX_RESPONSE_OCTETS if kind is SourceKind.OCSP else MAX_LIST_OCTETS

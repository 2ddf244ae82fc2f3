"""What a daemon takes over from one that was killed: its IKE SAs, and what it had put in force.

A store that cannot be read is no reason to stop, and no reason to guess: then everything of ours is
taken out of force, and this run begins with nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.datapath.interface import Datapath, DatapathError
from xfrmpy.failures import OperatorError
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.restoration import Restored
from xfrmpy.ipsec.drift import Dump
from xfrmpy.ipsec.spd import Place
from xfrmpy.store.interface import Store, StoreError
from xfrmpy.store.sqlite import SqliteStore, is_there

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_store(runtime_dir: Path) -> tuple[Store | None, dict[bytes, bytes]]:
    """The store of the runtime directory, and what an earlier daemon has left in it.

    None if there can be none: then this daemon does not outlive a kill.
    """
    try:
        boot_id = BOOT_ID.read_text(encoding="ascii").strip()
        if is_there(runtime_dir):
            try:
                store = SqliteStore.open(runtime_dir, boot_id)
                return store, store.load()
            except StoreError as error:
                log.warning("what an earlier run has kept is refused: %s", error)
        return SqliteStore.create(runtime_dir, boot_id), {}
    except (OSError, StoreError) as error:
        log.warning("a kill of this daemon will cost every SA: %s", error)
        return None, {}


def take_over(
    endpoint: IkeEndpoint,
    records: Mapping[bytes, bytes],
    datapaths: Datapaths,
    shunts: Collection[Place],
    now: float,
) -> Restored | None:
    """Go on from what was kept; what nobody wants any more is taken out of force, but for shunts.

    None if nothing was kept: then nothing of ours is in force, but for traps. Raises
    `OperatorError` XF3002.
    """
    if not records and not shunts and not endpoint.has_traps_to_keep():
        datapaths.clear()
        return None
    datapaths.retire_unused()
    dumps = [(datapath, _dump(datapath)) for datapath in datapaths.opened()]
    restored = endpoint.restore(
        records,
        [entry for _, dump in dumps for entry in dump.sad],
        [entry for _, dump in dumps for entry in dump.spd],
        now,
    )
    for sentence in restored.unreadable:
        log.warning("an IKE SA that an earlier run has kept is refused: %s", sentence)
    for datapath, dump in dumps:
        _remove_surplus(datapath, dump, restored, shunts)
    return restored if records else None


def _dump(datapath: Datapath) -> Dump:
    try:
        return datapath.dump()
    except DatapathError as error:
        summary = f"the {datapath.name} datapath does not tell what is in force: {error}"
        raise OperatorError("XF3002", summary) from error


def _remove_surplus(
    datapath: Datapath, dump: Dump, restored: Restored, shunts: Collection[Place]
) -> None:
    """SAs first: as long as there is a policy, nothing leaves in clear."""
    sas = [entry.id for entry in dump.sad if entry.id not in restored.sad]
    wanted = restored.spd | frozenset(shunts)
    policies = [p for p in dump.spd if p.place not in wanted]
    try:
        for sa in sas:
            datapath.remove_sa(sa)
        for policy in policies:
            datapath.remove_policy(policy)
    except DatapathError as error:
        summary = f"the {datapath.name} datapath keeps what an earlier run left: {error}"
        raise OperatorError("XF3002", summary) from error
    if sas or policies:
        log.info("removed %d objects that an earlier run left", len(sas) + len(policies))

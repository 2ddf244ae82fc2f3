"""Certificates of the laboratory: an authority, an intermediate one, and what they issue."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509 import DNSName, GeneralName, IPAddress, RFC822Name

from tests.pki.chains import Entity, authority, issue, key
from xfrmpy.pki.issuing import Authority

DAY = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """A root, and an authority below it that issues for gateways, all with keys of one kind."""

    kind: str
    root: Entity
    issuing: Entity

    @classmethod
    def of(cls, kind: str) -> Hierarchy:
        today = _today()
        root = authority(f"{kind} root", private_key=key(kind, 1), **today)
        issuing = authority(f"{kind} issuing", issuer=root, private_key=key(kind, 2), **today)
        return cls(kind=kind, root=root, issuing=issuing)

    def gateway(self, identity: str, **wishes: Any) -> Entity:
        """What the issuing authority gives to whoever has this identity."""
        given = {
            "issuer": self.issuing,
            "names": [_name(identity)],
            "private_key": key(self.kind, 3 + sum(identity.encode())),
            **_today(),
        }
        return issue(identity, **{**given, **wishes})


def expired() -> dict[str, datetime]:
    """Wishes for a certificate that has ended."""
    now = datetime.now(UTC)
    return {"start": now - 30 * DAY, "end": now - DAY}


def pem(*entities: Entity) -> bytes:
    return b"".join(e.library.public_bytes(Encoding.PEM) for e in entities)


def key_pem(entity: Entity) -> bytes:
    return entity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_credentials(directory: Path, leaf: Entity, *above: Entity, anchor: Entity) -> None:
    """The files of a gateway of ours that is called `gw` and trusts `corp`."""
    for name in ("certs", "keys", "cas"):
        (directory / name).mkdir(exist_ok=True, parents=True)
    (directory / "certs/gw.pem").write_bytes(pem(leaf, *above))
    (directory / "cas/corp.pem").write_bytes(pem(anchor))
    key_file = directory / "keys/gw.key"
    key_file.touch(0o600)
    key_file.write_bytes(key_pem(leaf))


NO_SHORT_FORM: dict[str, Any] = {"psk": None, "id": None, "peer_id": None}
"""What a tunnel's policy has by itself, and not beside `auth`."""


def signed(directory: Path, local_id: str, remote_id: str) -> dict[str, Any]:
    """Keys of a policy: our end signs with what `write_credentials` has put into `directory`."""
    auth = {
        "local": {
            "id": local_id,
            "cert": f"file:{directory}/certs/gw.pem",
            "key": f"file:{directory}/keys/gw.key",
        },
        "remote": {"id": remote_id, "ca": f"file:{directory}/cas/corp.pem"},
    }
    return {**NO_SHORT_FORM, "auth": auth}


def revocations(issuer: Entity, *revoked: Entity) -> bytes:
    """What an authority has taken back, in PEM."""
    authority = Authority(certificate=issuer.certificate, key=issuer.key)
    serials = [entity.library.serial_number for entity in revoked]
    return authority.revoke(serials, None, now=datetime.now(UTC), days=3)


def _today() -> dict[str, Any]:
    now = datetime.now(UTC).replace(microsecond=0)
    return {"start": now - DAY, "end": now + 30 * DAY}


def _name(identity: str) -> GeneralName:
    try:
        return IPAddress(ip_address(identity))
    except ValueError:
        return RFC822Name(identity) if "@" in identity else DNSName(identity)

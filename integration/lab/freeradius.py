"""Debian's FreeRADIUS as the server that knows the users, with a configuration of its own.

Nothing of `/etc/freeradius` is read. It takes no request without a Message-Authenticator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from integration.lab.process import Background, eventually

_CONFIGURATION = """\
name = freeradius
prefix = /usr
libdir = /usr/lib/freeradius
logdir = {directory}
run_dir = {directory}
pidfile = {directory}/pid
cleanup_delay = 2
hostname_lookups = no
proxy_requests = no
log {{
    destination = stdout
    auth = yes
}}
security {{
    max_attributes = 200
    reject_delay = 0
    status_server = no
    allow_core_dumps = no
}}
client gateways {{
    ipaddr = 0.0.0.0/0
    secret = "{secret}"
    require_message_authenticator = yes
}}
client gateways6 {{
    ipv6addr = ::/0
    secret = "{secret}"
    require_message_authenticator = yes
}}
modules {{
    eap {{
        default_eap_type = {default_eap_type}
        timer_expire = 60
        max_sessions = 1024
        md5 {{
        }}
        mschapv2 {{
        }}
        gtc {{
            auth_type = PAP
        }}
        {eap}
    }}
    mschap {{
    }}
    pap {{
    }}
    files {{
        filename = {directory}/users
    }}
    detail {{
        filename = {directory}/detail
    }}
}}
server gateways {{
    listen {{
        type = auth
        ipaddr = {address}
        port = {port}
    }}
    listen {{
        type = acct
        ipaddr = {address}
        port = {accounting_port}
    }}
    authorize {{
        eap {{
            ok = return
        }}
        files
        pap
    }}
    authenticate {{
        Auth-Type PAP {{
            pap
        }}
        mschap
        eap
    }}
    accounting {{
        detail
    }}
    post-auth {{
        Post-Auth-Type REJECT {{
            eap
        }}
    }}
}}
{servers}
"""


class Freeradius:
    """It runs where `prefix` leads (`Host.command()` is a namespace), and is stopped by `stop`.

    `users` have a password each, and `replies` attributes for an Access-Accept, as the users file
    writes them ('Class := "staff"'). `eap` are further sections of the module eap, `servers` are
    further virtual servers ("server inner-tunnel { ... }"), which may use the modules eap, files,
    pap and mschap.
    """

    port = 1812
    accounting_port = 1813

    def __init__(
        self,
        prefix: Sequence[str],
        directory: Path,
        *,
        users: Mapping[str, str],
        replies: Mapping[str, Sequence[str]] | None = None,
        secret: str = "radius secret of the laboratory",
        address: str = "127.0.0.1",
        default_eap_type: str = "mschapv2",
        eap: str = "",
        servers: str = "",
    ) -> None:
        directory.mkdir()
        self.address, self.secret = address, secret
        self.log = directory / "freeradius.log"
        self._directory = directory
        (directory / "users").write_text(
            "".join(
                f"{_quoted(user)} Cleartext-Password := {_quoted(password)}\n"
                + ",\n".join(f"\t{reply}" for reply in (replies or {}).get(user, ()))
                + "\n"
                for user, password in users.items()
            )
        )
        (directory / "radiusd.conf").write_text(
            _CONFIGURATION.format(
                directory=directory,
                secret=secret,
                address=address,
                port=self.port,
                accounting_port=self.accounting_port,
                default_eap_type=default_eap_type,
                eap=eap,
                servers=servers,
            )
        )
        self._command = (*prefix, "freeradius", "-X", "-d", str(directory), "-n", "radiusd")
        self.start()

    def start(self) -> None:
        """Return when it takes requests."""
        before = self.words.count(_READY)
        self._daemon = Background(self._command, self.log)

        def is_ready() -> bool:
            ended = self._daemon.process.poll()
            assert ended is None, f"freeradius ended with {ended}\n{self.words[-4000:]}"
            return self.words.count(_READY) > before

        try:
            eventually("freeradius to be ready", is_ready, seconds=30)
        except AssertionError:
            self.stop()
            raise

    @property
    def words(self) -> str:
        """All that it has said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def records(self) -> list[dict[str, str]]:
        """What was accounted, in the order in which it came; of several values the last."""
        file = self._directory / "detail"
        blocks = file.read_text().split("\n\n") if file.exists() else []
        return [
            {
                key.strip(): value.strip().strip('"')
                for line in block.splitlines()
                for key, found, value in [line.partition(" = ")]
                if found
            }
            for block in blocks
            if block.strip()
        ]

    def stop(self) -> None:
        self._daemon.stop()


_READY = "Ready to process requests"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

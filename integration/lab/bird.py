"""A routing daemon at a gateway: BIRD, which tells its neighbour by BGP of what is behind it."""

from __future__ import annotations

from pathlib import Path

from integration.lab.network import Host
from integration.lab.process import Background, run

_CONFIGURATION = """\
router id {router};
protocol device {{ scan time 1; }}
protocol direct {{ ipv4; interface "lan"; }}
protocol kernel {{
    ipv4 {{ export where source = RTS_BGP; import none; }};
}}
protocol bgp neighbour {{
    local {local} as {local_as};
    neighbor {remote} as {remote_as};
    hold time 6;
    keepalive time 2;
    connect retry time 1;
    connect delay time 1;
    error wait time 1, 2;
    ipv4 {{ import all; export where source = RTS_DEVICE; }};
}}
"""


class Bird:
    """It speaks from one address of its host's to another, and is stopped by `stop`."""

    def __init__(self, host: Host, directory: Path, local: str, remote: str) -> None:
        directory.mkdir()
        self._host = host
        self._socket = directory / "control"
        configuration = directory / "bird.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                router=local,
                local=local,
                remote=remote,
                local_as=65000 + host.site,
                remote_as=65000 + 3 - host.site,
            )
        )
        command = host.command("bird", "-f", "-c", str(configuration), "-s", str(self._socket))
        self.log = directory / "bird.log"
        self._daemon = Background(command, self.log)

    def show(self, *words: str) -> str:
        """What it says on `show WORDS...`; nothing while it does not listen yet."""
        command = ("birdc", "-r", "-s", str(self._socket), "show", *words)
        return run(*command, check=False).stdout

    def is_established(self) -> bool:
        return "Established" in self.show("protocols", "neighbour")

    def stop(self) -> None:
        self._daemon.stop()

"""The checks of sysctls and devices: what Linux does to the packets of a tunnel beside IPsec.

How `all` and a device's own value make one is in Linux, Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

from collections.abc import Iterator

from xfrmpy.cli.doctor.findings import Check, Finding
from xfrmpy.cli.doctor.host import Host, Unseen
from xfrmpy.policy.model import TunnelPolicy

_LEAST_MTU = 1280
"""Octets: what every link of IPv6 carries (RFC 8200 section 5), and IKE counts on."""
_TUN = "xfrmpy0"
_STRICT = 1  # of rp_filter
_UNREAD = Unseen("/proc/sys/net is not there, or not readable")


def check_forwarding(check: Check, host: Host) -> Iterator[Finding]:
    """Of tunnels with a subnet behind this host."""
    for version, name in ((4, "net/ipv4/ip_forward"), (6, "net/ipv6/conf/all/forwarding")):
        wanting = [t for t in host.policy.tunnels if _has_subnet(t, version)]
        value = host.settings.get(name)
        if not wanting:
            continue
        if value is None:
            yield check.unseen(f"whether this host forwards IPv{version}", _UNREAD)
        elif value == "0":
            yield check.problem(
                f"this host forwards no IPv{version}, and there are subnets behind it",
                (_dotted(name), value),
                ("tunnels", ", ".join(t.name for t in wanting)),
                fix=f"`sysctl -w {_dotted(name)}=1`, and the same in /etc/sysctl.d",
            )
        else:
            yield check.ok(f"this host forwards IPv{version}")
    if not any(
        _has_subnet(tunnel, version) for tunnel in host.policy.tunnels for version in (4, 6)
    ):
        yield check.ok("no tunnel has a subnet behind this host, so nothing is to be forwarded")


def _has_subnet(tunnel: TunnelPolicy, version: int) -> bool:
    """Whether `local` is more than an address; with an interface it usually is everything."""
    return tunnel.interface is None and any(
        child.mode == "tunnel"
        and ts.start_address.version == version
        and ts.start_address != ts.end_address
        for child in tunnel.children
        for ts in child.local
    )


def check_reverse_path(check: Check, host: Host) -> Iterator[Finding]:
    """Only on TUN and tunnels' own devices: what the kernel has decrypted passes it anyway."""
    ours = {*_interfaces(host)}
    if f"net/ipv4/conf/{_TUN}/rp_filter" in host.settings:
        ours.add(_TUN)
    strict = [device for device in sorted(ours) if _strictness(host, device) == _STRICT]
    if strict:
        yield check.note(
            "strict reverse path filtering drops what a peer sends where no route leads back",
            ("rp_filter is 1 on", ", ".join(strict)),
            fix="; ".join(
                f"`sysctl -w {_dotted(f'net/ipv4/conf/{device}/rp_filter')}=2`" for device in strict
            ),
        )
    elif not host.settings:
        yield check.unseen("how reverse paths are filtered", _UNREAD)
    else:
        yield check.ok("no strict reverse path filtering on what carries tunnels")


def _strictness(host: Host, device: str) -> int:
    """The larger of the two is in force; a device that is yet to be made will have `default`."""
    is_there = f"net/ipv4/conf/{device}/rp_filter" in host.settings
    own = _number(host, "rp_filter", device if is_there else "default")
    return max(own, _number(host, "rp_filter", "all"))


def check_protection(check: Check, host: Host) -> Iterator[Finding]:
    """`disable_xfrm` lets traffic out in clear by a device, `disable_policy` lets it in."""
    faults = 0
    for key, what in (("disable_xfrm", "leaves in clear"), ("disable_policy", "is let in clear")):
        devices = [d for d in _devices(host) if _number(host, key, d)]
        if not devices:
            continue
        faults += 1
        names = [_dotted(f"net/ipv4/conf/{device}/{key}") for device in devices]
        yield check.problem(
            f"the kernel's IPsec is switched off on a device: what should be protected {what}",
            *((name, "1") for name in names),
            fix="; ".join(f"`sysctl -w {name}=0`" for name in names),
        )
    if not host.settings:
        yield check.unseen("whether a device is exempt from IPsec", _UNREAD)
    elif not faults:
        yield check.ok("no device is exempt from IPsec")


def _devices(host: Host) -> Iterator[str]:
    """All but `lo`, which is exempt by nature, `default`, and what belongs to tunnels."""
    passed = {"lo", "default", *_interfaces(host)}
    for name in host.settings:
        device = name.removeprefix("net/ipv4/conf/").removesuffix("/disable_xfrm")
        if "/" not in device and device not in passed:
            yield device


def check_redirects(check: Check, host: Host) -> Iterator[Finding]:
    """A router that sends packets back where they came from tells the sender of another way."""
    if not host.settings:
        yield check.unseen("whether ICMP redirects are sent or believed", _UNREAD)
        return
    if host.settings.get("net/ipv4/ip_forward") == "0" or not host.policy.tunnels:
        yield check.ok("no redirects: this host forwards nothing, or has no tunnel")
        return
    devices = [d for d in _devices(host) if d != "all"]
    sending = [d for d in devices if _number(host, "send_redirects", d)]
    sends_all = bool(_number(host, "send_redirects", "all"))
    # On a host that forwards, a device believes them only where `all` does, too.
    believes_all = bool(_number(host, "accept_redirects", "all"))
    believing = [d for d in devices if believes_all and _number(host, "accept_redirects", d)]
    sending = devices if sends_all else sending
    for key, named, meaning in (
        ("send_redirects", sending, "sends: hosts behind it may be led around the tunnel"),
        ("accept_redirects", believing, "believes: a neighbour can lead its packets elsewhere"),
    ):
        if named:
            yield check.note(
                f"ICMP redirects that this gateway {meaning}",
                (f"{key} on", ", ".join(named)),
                fix=f"`sysctl -w net.ipv4.conf.all.{key}=0`, and so for `default` and each device",
            )
    if not sending and not believing:
        yield check.ok("ICMP redirects are neither sent nor believed")


def check_mtu(check: Check, host: Host) -> Iterator[Finding]:
    ours = {"lo", _TUN, *_interfaces(host)}
    small = {d: mtu for d, mtu in host.mtus.items() if mtu < _LEAST_MTU and d not in ours}
    if small:
        yield check.note(
            f"a device carries less than {_LEAST_MTU} octets: packets of IKE are cut by IP",
            *((device, f"MTU {mtu}") for device, mtu in small.items()),
            fix="`ip link set DEVICE mtu 1500`, if it is meant to carry tunnels and its link can",
        )
    if host.settings.get("net/ipv4/ip_no_pmtu_disc", "0") != "0":
        yield check.note(
            "path MTU discovery is off: packets of tunnels are cut on the way, or lost",
            ("net.ipv4.ip_no_pmtu_disc", host.settings["net/ipv4/ip_no_pmtu_disc"]),
            fix="`sysctl -w net.ipv4.ip_no_pmtu_disc=0`",
        )
    elif not small:
        yield check.ok(f"every device carries {_LEAST_MTU} octets, and path MTUs are discovered")


def _interfaces(host: Host) -> set[str]:
    return {t.interface.name for t in host.policy.tunnels if t.interface is not None}


def _number(host: Host, key: str, device: str) -> int:
    value = host.settings.get(f"net/ipv4/conf/{device}/{key}", "0")
    return int(value) if value.isdigit() else 0


def _dotted(name: str) -> str:
    """As sysctl(8) has it: a device with dots in its name wants slashes."""
    return name if "." in name else name.replace("/", ".")

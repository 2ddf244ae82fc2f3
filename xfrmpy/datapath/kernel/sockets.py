"""What the kernel must do for the sockets of an IKE daemon, beside its SAD and SPD."""

from __future__ import annotations

import socket

from xfrmpy.datapath.kernel.structs import USERPOLICY_INFO

_UDP_ENCAP, _UDP_ENCAP_ESPINUDP = 100, 2  # <linux/udp.h>
_IP_XFRM_POLICY, _IPV6_XFRM_POLICY = 17, 35  # <linux/in.h>, <linux/in6.h>
_DIRECTIONS = (0, 1)  # XFRM_POLICY_IN, XFRM_POLICY_OUT
_ALLOW = 0  # XFRM_POLICY_ALLOW
_INFINITE = (1 << 64) - 1  # XFRM_INF


def enable_udp_encapsulation(sock: socket.socket) -> None:
    """Make the kernel take ESP out of the datagrams of a UDP socket (RFC 3948).

    Datagrams with a non-ESP marker, and keepalives, still reach the socket. Raises `OSError`.
    """
    sock.setsockopt(socket.IPPROTO_UDP, _UDP_ENCAP, _UDP_ENCAP_ESPINUDP)


def exempt_from_policies(sock: socket.socket) -> None:
    """Let a socket's datagrams pass in clear whatever the SPD says (RFC 7296 section 2.23).

    IKE must get through even where a policy covers everything between two hosts. Raises `OSError`.
    """
    is_ipv4 = sock.family == socket.AF_INET
    level, option = (
        (socket.IPPROTO_IP, _IP_XFRM_POLICY)
        if is_ipv4
        else (socket.IPPROTO_IPV6, _IPV6_XFRM_POLICY)
    )
    for direction in _DIRECTIONS:
        policy = USERPOLICY_INFO.pack(
            {
                "sel_family": sock.family,
                "dir": direction,
                "action": _ALLOW,
                **{f"lft_{name}_limit": _INFINITE for name in _LIMITS},
            }
        )
        sock.setsockopt(level, option, policy)


_LIMITS = ("soft_byte", "hard_byte", "soft_packet", "hard_packet")

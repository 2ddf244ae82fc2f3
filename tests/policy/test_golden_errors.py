"""Every mistake gives exactly its errors: code, line, column, words, hint."""

# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable

import pytest

from xfrmpy.failures import CATALOGUE
from xfrmpy.policy.load import LoadedPolicy

Load = Callable[..., LoadedPolicy]
Lines = Callable[[LoadedPolicy], list[str]]

GOOD = "peer: 192.0.2.1\npsk: secret:key\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\n"
"""Four lines, so that whatever is appended stands in line 5."""

APPENDED: dict[str, tuple[str, ...]] = {
    "pskk: x\n": ("1: XF1002: unknown key 'pskk' (did you mean psk?)",),
    "xyzzy: 1\n": ("1: XF1002: unknown key 'xyzzy'",),
    "peer: 192.0.2.2\n": ("1: XF1003: 'peer' is given twice, first in line 1",),
    "id:\n": ("4: XF1004: 'id' has no value",),
    "id: 12\n": ("5: XF1004: 'id' must be text, not 12 (put it between quotes)",),
    'id: "a b"\n': (
        "5: XF1004: 'id' must be an address, a domain name, user@host, keyid:TEXT, keyid:0xHEX or O=Name, CN=Name, not 'a b'",
    ),
    'id: "keyid:0xzz"\n': (
        "5: XF1004: 'id' must be an address, a domain name, user@host, keyid:TEXT, keyid:0xHEX or O=Name, CN=Name, not 'keyid:0xzz'",
    ),
    'id: "keyid:0x"\n': (
        "5: XF1004: 'id' must be an address, a domain name, user@host, keyid:TEXT, keyid:0xHEX or O=Name, CN=Name, not 'keyid:0x'",
    ),
    "id: CN=sun, O\n": (
        "5: XF1004: 'id' must be an address, a domain name, user@host, keyid:TEXT, keyid:0xHEX or O=Name, CN=Name, not 'CN=sun, O'",
    ),
    'id: "*.example.org"\n': (
        "5: XF1004: 'id' must be one identity: '*.example.org' could be anybody's",
    ),
    'peer_id: "%any"\n': ("10: XF1004: 'peer_id' must be one identity: '%any' could be anybody's",),
    "peer_id: [a, b]\n": ("10: XF1004: 'peer_id' must be text",),
    "start: atuo\n": (
        "8: XF1004: 'start' must be one of auto, on-demand, listen, manual, not 'atuo' (did you mean auto?)",
    ),
    "start: yes\n": (
        "8: XF1004: 'start' must be one of auto, on-demand, listen, manual, not 'yes'",
    ),
    "mode: tunel\n": (
        "7: XF1004: 'mode' must be one of tunnel, transport, beet, not 'tunel' (did you mean tunnel?)",
    ),
    "datapath: kernal\n": (
        "11: XF1004: 'datapath' must be one of auto, kernel, userspace, not 'kernal' (did you mean kernel?)",
    ),
    "encapsulation: never\n": (
        "16: XF1004: 'encapsulation' must be one of auto, nat, force, not 'never'",
    ),
    "fragmentation: maybe\n": ("16: XF1004: 'fragmentation' must be yes or no, not 'maybe'",),
    "fragmentation: 1\n": ("16: XF1004: 'fragmentation' must be yes or no, not 1",),
    "dpd: no\n": ("6: XF1004: 'dpd' must be a time such as 30s, 5m or 1h, not 'no'",),
    "dpd: 0\n": ("6: XF1004: 'dpd' must be from 1s to 86400s, not 0",),
    "dpd: 12:30\n": ("6: XF1004: 'dpd' must be a time such as 30s, 5m or 1h, not '12:30'",),
    "dpd: 30 s\n": ("6: XF1004: 'dpd' must be a time such as 30s, 5m or 1h, not '30 s'",),
    "dpd: -1\n": ("6: XF1004: 'dpd' must be from 1s to 86400s, not -1",),
    "dpd: .inf\n": ("6: XF1004: 'dpd' must be a time such as 30s, 5m or 1h, not '.inf'",),
    "peer_port: 500\n": (
        "12: XF1004: 'peer_port' cannot be 500, where no ESP goes (RFC 7296 section 2.23)",
    ),
    "peer_port: 65536\n": (
        "12: XF1004: 'peer_port' must be a whole number from 1 to 65535, not 65536",
    ),
    "local_address: gw.example.org\n": (
        "16: XF1004: 'local_address' must be an IP address, not 'gw.example.org'",
    ),
    "local_address: 2001:db8::1\n": (
        "16: XF1004: 'local_address' is IPv6, and an address of 'peer' is not",
    ),
    "local_address: 0.0.0.0\n": (
        "16: XF1004: 'local_address' must be the address of one host without a zone, not 0.0.0.0",
    ),
    "ike: modem\n": ("6: XF1004: 'ike' is not a proposal: unknown algorithm 'modem'",),
    "ike: aes256gcm-x25519\n": (
        "6: XF1004: 'ike' is not a proposal: unknown algorithm 'aes256gcm' (did you mean aes256gcm8?)",
    ),
    "ike: aes256gcm16-x25519\n": (
        "6: XF1004: 'ike' is not a proposal: no PRF is named, e.g. prfsha256",
    ),
    "ike: []\n": ("6: XF1004: 'ike' must have 1 to 255 items",),
    "ike: {profile: azure}\n": ("16: XF1011: 'profile' cannot be azure yet",),
    "ike: {profile: modern, proposals: aes256-sha256-x25519}\n": (
        "7: XF1004: 'profile' and 'proposals' exclude each other",
    ),
    "ike: 3des-sha1-x25519\n": (
        (
            "6: XF1020: '3des' is weak: blocks of 64 bits collide after some gigabytes (RFC 8221: "
            "SHOULD NOT) (ike: {profile: compat, proposals: ...} allows it)"
        ),
        (
            "6: XF1020: 'prfsha1' is weak: SHA-1 is on its way out (RFC 8221 and 8247: MUST-) "
            "(ike: {profile: compat, proposals: ...} allows it)"
        ),
        (
            "6: XF1020: 'sha1' is weak: SHA-1 is on its way out (RFC 8221 and 8247: MUST-) "
            "(ike: {profile: compat, proposals: ...} allows it)"
        ),
    ),
    "esp: null-sha256\n": (
        (
            "6: XF1020: 'null' is weak: it encrypts nothing "
            "(esp: {profile: compat, proposals: ...} allows it)"
        ),
    ),
    "ah: {proposals: sha1}\n": (
        (
            "17: XF1020: 'sha1' is weak: SHA-1 is on its way out (RFC 8221 and 8247: MUST-) "
            "(ah: {profile: compat, proposals: ...} allows it)"
        ),
    ),
    "ah: aes128gcm16\n": ("5: XF1004: 'ah' is not a proposal: aes128gcm16: AH encrypts nothing",),
    "ah: sha256\nesp: aes128gcm16\n": (
        "1: XF1004: 'ah' and 'esp' exclude each other (keep one of them)",
    ),
    "encapsulation: force\nah: sha256\n": (
        (
            "16: XF1004: 'encapsulation' cannot be force with 'ah', which does not go in UDP "
            "(write auto)"
        ),
    ),
    "datapath: kernel\nesp: aes128gcm16iiv\n": (
        (
            "11: XF1004: 'datapath' cannot be kernel: Linux has none of the ciphers of 'esp' "
            "(write auto or userspace)"
        ),
    ),
    "ike: {lifetime: 5s}\n": ("17: XF1004: 'lifetime' must be from 10s to 2.592e+06s, not '5s'",),
    "ike: {reauth: often}\n": (
        "15: XF1004: 'reauth' must be a time such as 30s, 5m or 1h, not 'often'",
    ),
    "start: auto\ninactivity: 10m\n": (
        "8: XF1004: 'inactivity' would take down what 'start: auto' brings up again (write on-demand, or manual)",
    ),
    "esp: {max_bytes: 5}\n": (
        "18: XF1004: 'max_bytes' must be an amount such as 500MB or 2TB, not 5",
    ),
    "esp: {max_bytes: 5kB}\n": ("18: XF1004: 'max_bytes' must be at least 1MB, not '5kB'",),
    "esp: {max_packets: 5}\n": (
        "20: XF1004: 'max_packets' must be a whole number from 1000 to 4611686018427387904, not 5",
    ),
    "esp: aes256\n": (
        "6: XF1004: 'esp' is not a proposal: the cipher needs an integrity algorithm, e.g. sha256",
    ),
    "esp: {offload: crypto}\ndatapath: userspace\n": (
        "16: XF1004: 'offload' is the kernel's, and 'datapath' is userspace (leave out one of them)",
    ),
    "esp: {dont_fragment: set}\ndatapath: kernel\n": (
        "22: XF1004: with 'datapath: kernel', DF is copied or cleared (write copy or clear)",
    ),
    "esp: {offload: packet}\n": ("16: XF1004: 'offload' must be one of crypto, not 'packet'",),
    "esp: {replay_window: 0777}\n": (
        "22: XF1004: 'replay_window' must be a whole number from 32 to 4096, not '0777'",
    ),
    "per_resource: 1\n": (
        "15: XF1004: 'per_resource' must be auto, off or a whole number from 2 to 64, not 1",
    ),
    "esp: {replay_window: 16}\n": (
        "22: XF1004: 'replay_window' must be a whole number from 32 to 4096, not 16",
    ),
    "esp: {lifetime: 1h, replay: 3}\n": (
        "7: XF1002: unknown key 'lifetime'",
        "21: XF1002: unknown key 'replay' (did you mean replay_window?)",
    ),
    "retransmission: 5\n": ("17: XF1004: 'retransmission' must be a map of keys",),
    "retransmission: {tries: 1.5, factor: 99, initial: 1h, jitter: true}\n": (
        "25: XF1004: 'tries' must be a whole number from 0 to 30, not 1.5",
        "38: XF1004: 'factor' must be a number from 1 to 10, not 99",
        "51: XF1004: 'initial' must be from 0.1s to 60s, not '1h'",
        "63: XF1004: 'jitter' must be a number from 0 to 0.9, not true",
    ),
    "children: {}\n": (
        "1: XF1004: 'children' stands beside 'local' and 'remote', to be written inside it",
        "11: XF1005: 'children' is empty",
    ),
    "children: {lan: {local: 10.1.0.0/16}}\n": (
        "1: XF1004: 'children' stands beside 'local' and 'remote', to be written inside it",
        "12: XF1005: 'remote' is missing (remote: PREFIX)",
    ),
    "auth: {psk: secret:key, remote: {cert: x}}\n": ("34: XF1011: 'cert' is not supported yet",),
    "auth: {psk: secret:key}\n": (
        "1: XF1004: 'auth' stands beside 'psk', to be written inside it",
    ),
    "interface:\n": ("11: XF1004: 'interface' has no value",),
    "interface: 10.0.0.0.1\n": (
        "12: XF1004: 'interface' must be an address such as 169.254.10.1/30, not '10.0.0.0.1'",
    ),
    "interface: 0.0.0.0/0\n": (
        "12: XF1004: 'interface' must be the address of one host without a zone, not '0.0.0.0/0'",
    ),
    "interface: {name: a/b}\n": (
        "19: XF1004: 'name' must be the name of a network device: 1 to 15 letters, digits, '.', '_' and '-', the first a letter or digit",
    ),
    "interface: {name: lo}\n": (
        "19: XF1004: 'name' must be the name of a network device: 1 to 15 letters, digits, '.', '_' and '-', the first a letter or digit",
    ),
    "interface: {mtu: 68}\n": (
        "18: XF1004: 'mtu' must be a whole number from 576 to 65535, not 68",
    ),
    "interface: {if_id: 1480982528}\n": (
        "20: XF1004: 'if_id' cannot be 1480982528: such are given by xfrmpy itself",
    ),
    "interface: {routes: 10.2.0.1/16}\n": (
        "21: XF1004: 'routes' must be a prefix, not '10.2.0.1/16' (did you mean 10.2.0.0/16?)",
    ),
    "interface: {routes: 192.0.2.0/24}\n": (
        "21: XF1004: 'routes' lead to the peer 192.0.2.1 through the tunnel itself: 192.0.2.0/24 (put the interface into a 'vrf' or a 'namespace', or name smaller prefixes)",
    ),
    "interface: {vrff: red}\n": ("13: XF1002: unknown key 'vrff' (did you mean vrf?)",),
    "traffic: tcp/5432\n": ("1: XF1011: 'traffic' is not supported yet",),
    "on_down: drop\n": ("10: XF1004: 'on_down' must be one of block, clear, not 'drop'",),
    "a: &x 1\n": ("4: XF1001: anchors and aliases (`&`, `*`) are not read",),
    "id: *x\n": ("5: XF1001: anchors and aliases (`&`, `*`) are not read",),
    "<<: *x\n": ("5: XF1001: anchors and aliases (`&`, `*`) are not read",),
    "id: !!str x\n": ("5: XF1001: tags (`!`) are not read",),
    "id: !secret!word x\n": ("5: XF1001: tags (`!`) are not read",),
    "? [a]\n": ("3: XF1001: a key must be text",),
    'id: "\\0"\n': ("5: XF1001: a control character in a value",),
    'id: "\\UFFFFFFFF"\n': ("1: XF1001: what follows here is not YAML",),
    "id: 'x\n": ("5: XF1001: found unexpected end of stream, while scanning a quoted scalar",),
    "id: {a: [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}\n": (
        "23: XF1001: more than 16 levels of nesting",
    ),
    "@\n": ("1: XF1001: found character '@' that cannot start any token",),
}

WHOLE: dict[str | bytes, tuple[str, ...]] = {
    "hunter2\n": ("1:1: XF1004: the file must be a map of keys",),
    "- a\n": ("1:1: XF1004: the file must be a map of keys",),
    "peer: a.example\n---\npeer: b.example\n": (
        "2:1: XF1001: a second document; a file holds one",
    ),
    "a: b: c\n": ("1:5: XF1001: mapping values are not allowed here",),
    b"a: \xff\n": ("1:4: XF1001: the text is not UTF-8 here",),
    b"peer: a\npsk: \x00\n": ("2:6: XF1001: a control character (\\x00)",),
    b"# \xe9\n": ("1:3: XF1001: the text is not UTF-8 here",),
    "{}\n": (
        "1:1: XF1005: 'psk' is missing (psk: secret:NAME)",
        "1:1: XF1005: 'peer_id' is missing: without a 'peer', nothing else says who may call",
        "1:1: XF1005: 'local' is missing (local: PREFIX)",
        "1:1: XF1005: 'remote' is missing (remote: PREFIX)",
    ),
    "gateways: {a: 1}\npeer: a.example\n": (
        "1:1: XF1011: 'gateways' is not supported yet",
        "2:1: XF1002: unknown key 'peer' (a key of a tunnel belongs under tunnels: NAME:)",
    ),
    "default: {dpd: 3s}\npeer: a.example\n": (
        "1:1: XF1002: unknown key 'default' (did you mean defaults?)",
        "2:1: XF1002: unknown key 'peer' (a key of a tunnel belongs under tunnels: NAME:)",
    ),
    "psk: secret:key\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\n": (
        "1:1: XF1005: 'peer_id' is missing: without a 'peer', nothing else says who may call",
    ),
    "psk: secret:key\nstart: auto\npeer_id: a.example\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\n": (
        "2:8: XF1004: 'start' cannot be auto without a 'peer' (write listen, or add 'peer')",
    ),
    "peer: [a.example, b.example]\npsk: secret:key\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\n": (
        "1:1: XF1005: 'peer_id' is missing: with several peers, it must say who they all are",
    ),
    "peer: [a.example, 203.0.113.777, '%any', fe80::1%eth0, ff02::1]\n": (
        "1:19: XF1004: 'peer' must be an address or a host name, not '203.0.113.777'",
        "1:34: XF1004: 'peer' must be an address or a host name, not '%any' (leave 'peer' out to listen for any peer)",
        "1:42: XF1004: 'peer' must be the address of one host without a zone, not fe80::1%eth0",
        "1:56: XF1004: 'peer' must be the address of one host without a zone, not ff02::1",
    ),
    "peer: []\n": ("1:7: XF1004: 'peer' must have 1 to 255 items",),
    "peer: a.example\npsk: hunter2hunter2\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\n": (
        "2:6: XF1010: 'psk' must not hold the secret itself (put it into a file and write secret:NAME or file:/PATH)",
    ),
    "peer: a.example\npsk: 1234567890\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\n": (
        "2:6: XF1010: 'psk' must not hold the secret itself (put it into a file and write secret:NAME or file:/PATH)",
    ),
    "psk: {hunter2: 1}\n": ("1:6: XF1004: 'psk' must be a reference such as secret:NAME",),
    "psk: secret:../hunter2\n": (
        "1:6: XF1004: 'psk' must name the secret with 1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit",
    ),
    "psk: secret:hunter two\n": (
        "1:6: XF1004: 'psk' must name the secret with 1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit",
    ),
    "psk: file:hunter2\n": (
        "1:6: XF1004: 'psk' must give the whole path of the file, as in file:/PATH",
    ),
    "psk: credential:../x\n": (
        "1:6: XF1004: 'psk' must name the credential with 1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit",
    ),
    "psk: secret\n": (
        "1:6: XF1010: 'psk' must not hold the secret itself (put it into a file and write secret:NAME or file:/PATH)",
    ),
    "peer: a.example\npsk: secret:nokey\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\n": (
        "2:6: XF1008: the secret 'nokey' is not there (looked for secrets/nokey)",
    ),
    "peer: a.example\npsk: secret:key\nlocal: 10.1.0.1/16\nremote: [10.2.0.0-10.1.0.0, '10.2.0.0/16[tpc]', 10, '::1-10.0.0.1', '10.0.0.0/8[tcp/99999]']\n": (
        "3:8: XF1004: 'local' is not a traffic selector: 10.1.0.1/16 has host bits set (did you mean 10.1.0.0/16?)",
        "4:10: XF1004: 'remote' is not a traffic selector: reversed address range 10.2.0.0-10.1.0.0",
        "4:29: XF1004: 'remote' is not a traffic selector: unknown protocol 'tpc'; known are gre, icmp, icmpv6, ospf, sctp, tcp, udp, and numbers below 256",
        "4:49: XF1004: 'remote' must be text, not 10 (put it between quotes)",
        "4:53: XF1004: 'remote' is not a traffic selector: a traffic selector's addresses must be of one family",
        "4:69: XF1004: 'remote' is not a traffic selector: '99999' is neither a port nor a range of ports",
    ),
    "peer: a.example\npsk: secret:key\nlocal: 10.1.0.0/16\nremote: 2001:db8::/32\n": (
        "4:9: XF1004: 'local' and 'remote' have no address family and protocol in common",
    ),
    "peer: a.example\npsk: secret:key\nlocal: '10.1.0.0/16[tcp]'\nremote: '10.2.0.0/16[udp]'\n": (
        "4:9: XF1004: 'local' and 'remote' have no address family and protocol in common",
    ),
    "peer: a.example\npsk: secret:key\nchildren:\n  one: {local: 10.1.0.0/16, remote: 10.2.0.0/16}\n  two: {local: [10.3.0.0/16, 10.1.0.0/16], remote: 10.2.0.0/16}\n": (
        "5:3: XF1007: child 'two' would carry the same traffic as 'one': 10.1.0.0/16 to 10.2.0.0/16",
    ),
    "peer: a.example\npsk: secret:key\nchildren:\n  lan: {local: 10.1.0.0/16}\n": (
        "4:3: XF1005: 'remote' is missing (remote: PREFIX)",
    ),
    "peer: a.example\npsk: secret:key\nchildren:\n  'a/b': {local: 10.1.0.0/16, remote: 10.2.0.0/16}\n": (
        "4:3: XF1004: 'a/b' is not a name: 1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit",
    ),
    "auth: {local: {id: a}}\npeer: a.example\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\n": (
        "1:1: XF1005: 'psk' is missing (psk: secret:NAME)",
    ),
    "tunnels:\n": ("1:9: XF1004: 'tunnels' has no value",),
    "tunnels: []\n": ("1:10: XF1004: 'tunnels' must be a map of keys",),
    "tunnels:\n  a:\n  b: 1\n": (
        "2:5: XF1004: 'a' has no value",
        "3:6: XF1004: 'b' must be a map of keys",
    ),
    "tunnles:\n  office: {peer: a.example}\n": (
        "1:1: XF1002: unknown key 'tunnles' (did you mean tunnels?)",
    ),
    "tunnels:\n  bad name: {}\npeer: a\ndefaults: {dpdd: 1}\n": (
        "2:3: XF1004: 'bad name' is not a name: 1 to 63 letters, digits, '.', '_' and '-', the first a letter or digit",
        "3:1: XF1002: unknown key 'peer' (a key of a tunnel belongs under tunnels: NAME:)",
        "4:12: XF1002: unknown key 'dpdd' (did you mean dpd?)",
    ),
    "tunnels:\n  a:\n    peer: 192.0.2.1\n  b:\n    peer: 192.0.2.2\n    dpdd: 1\n": (
        "2:3: XF1005: 'psk' is missing (psk: secret:NAME)",
        "2:3: XF1005: 'local' is missing (local: PREFIX)",
        "2:3: XF1005: 'remote' is missing (remote: PREFIX)",
        "6:5: XF1002: unknown key 'dpdd' (did you mean dpd?)",
    ),
    "defaults:\n  start: auto\n  local: 10.1.0.0/16\ntunnels:\n  a: {peer_id: x, remote: 10.2.0.0/16, psk: secret:key}\n": (
        "2:10: XF1004: 'start' cannot be auto without a 'peer' (write listen, or add 'peer')",
    ),
    "defaults: {local: 10.1.0.0/16, psk: secret:key}\ntunnels:\n  a: {peer: a.example, remote: 10.2.0.0/16}\n  b: {peer: b.example, remote: 10.2.3.0/24}\n": (
        "4:32: XF1007: tunnel 'b' would carry the same traffic as 'a' (t.yaml:3): 10.1.0.0/16 to 10.2.3.0/24",
    ),
    "tunnels:\n  a: {peer: a.example}\n  a: {peer: b.example}\n": (
        "2:3: XF1005: 'psk' is missing (psk: secret:NAME)",
        "2:3: XF1005: 'local' is missing (local: PREFIX)",
        "2:3: XF1005: 'remote' is missing (remote: PREFIX)",
        "3:3: XF1003: 'a' is given twice, first in line 2",
    ),
}


@pytest.mark.parametrize(("text", "expected"), APPENDED.items())
def test_a_good_tunnel_with_one_more_line_gives_just_its_errors(
    load: Load, lines: Lines, text: str, expected: tuple[str, ...]
) -> None:
    loaded = load(**{"t.yaml": GOOD + text})
    assert lines(loaded) == [f"t.yaml:5:{error}" for error in expected]
    assert loaded.tunnels == ()


@pytest.mark.parametrize(("text", "expected"), WHOLE.items())
def test_a_file_gives_just_its_errors(
    load: Load, lines: Lines, text: str | bytes, expected: tuple[str, ...]
) -> None:
    loaded = load(**{"t.yaml": text})
    assert lines(loaded) == [f"t.yaml:{error}" for error in expected]
    assert loaded.tunnels == ()


def test_the_lines_that_the_cases_start_from_are_good(load: Load) -> None:
    loaded = load(**{"t.yaml": GOOD})
    assert loaded.errors == ()
    assert [tunnel.name for tunnel in loaded.tunnels] == ["t"]


def test_every_code_of_the_cases_is_in_the_catalogue() -> None:
    errors = [error for expected in (*APPENDED.values(), *WHOLE.values()) for error in expected]
    assert {error.split(": ")[1] for error in errors} <= CATALOGUE.keys()

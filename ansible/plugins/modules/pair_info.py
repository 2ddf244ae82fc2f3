#!/usr/bin/python
# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
from __future__ import annotations

DOCUMENTATION = r"""
module: pair_info
short_description: Whether the two ends of tunnels would agree
version_added: 0.1.0
description:
  - Compares policies of this gateway with those of its peers, by C(xfrmpy check --peer),
    before any of them is in force. It needs no daemon, and leaves nothing behind.
  - It fails unless each of our tunnels would come up.
options:
  pairs:
    description:
      - By the peers' names, C(ours) and C(theirs), policy files by name, as M(xfrmpy.gateway.apply)
        has them.
      - They have the tunnels between the two gateways and no others.
      - Where the policies call C(secret:host.key), also C(keys), a mapping of C(ours) and C(theirs)
        to the public keys of the two.
    type: dict
    required: true
  secrets:
    description: Secrets that both call C(secret:NAME), by name.
    type: dict
    default: {}
extends_documentation_fragment:
  - xfrmpy.gateway.common.program
  - xfrmpy.gateway.common.info
author:
  - The xfrmpy authors (@xfrmpy)
"""

EXAMPLES = r"""
- name: Would the tunnel come up?
  xfrmpy.gateway.pair_info:
    pairs:
      sun.example.net:
        ours:
          office:
            peer: sun.example.net
            id: moon
            psk: secret:office
            local: 10.1.0.0/16
            remote: 10.2.0.0/16
        theirs:
          branch:
            peer: moon.example.net
            peer_id: moon
            id: sun.example.net
            psk: secret:office
            local: 10.2.0.0/16
            remote: 10.1.0.0/16
    secrets:
      office: "{{ vault_office }}"
"""

RETURN = r"""
pairs:
  description: By the peers' names, what C(xfrmpy check --peer) says of each pair of tunnels.
  returned: always
  type: dict
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.xfrmpy.gateway.plugins.module_utils.policy import wanted_files
from ansible_collections.xfrmpy.gateway.plugins.module_utils.xfrmpy import (
    DONE,
    HOST_KEY,
    Xfrmpy,
    check_name,
    failed,
    failure_of,
    write_tree,
)

ENDS = ("ours", "theirs")


def main():
    module = AnsibleModule(
        argument_spec={
            "pairs": {"type": "dict", "required": True},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "program": {"type": "str", "default": "xfrmpy"},
        },
        supports_check_mode=True,
    )
    given, xfrmpy = module.params, Xfrmpy(module)
    pairs, faults = {}, []
    for peer, ends in given["pairs"].items():
        check_name(module, peer, "the name of a peer")
        if not isinstance(ends, dict) or {*ends} - {"keys"} != {*ENDS}:
            module.fail_json(msg=f"the pair with {peer} is no mapping of `ours` and `theirs`")
        keys = ends.get("keys", {})
        if not isinstance(keys, dict) or {*keys} - {*ENDS}:
            module.fail_json(msg=f"`keys` of {peer} is no mapping of `ours` and `theirs`")
        ours, theirs = (stage(module, peer, end, ends[end], keys.get(end)) for end in ENDS)
        code, answer = xfrmpy.ask("check", ours, "--peer", theirs)
        if failure_of(answer):
            module.fail_json(**failed(failure_of(answer), code))
        pairs[peer] = [pair for pair in answer["pairs"] if pair["peer_tunnel"] is not None]
        if code != DONE:
            faults.append(f"{peer}: {told(pairs[peer], answer['errors'])}")
    if faults:
        module.fail_json(msg=f"nothing was deployed: {'; '.join(faults)}", pairs=pairs)
    module.exit_json(changed=False, pairs=pairs)


def stage(module, peer, end, files, key):
    """The policy of one end in a directory of its own, with its public key if it has one."""
    if not isinstance(files, dict):
        module.fail_json(msg=f"`{end}` of {peer} is no mapping of names to policies")
    tree = {f"conf.d/{file}": text for file, text in wanted_files(module, files).items()}
    for secret, value in module.params["secrets"].items():
        check_name(module, secret, "the name of a secret")
        tree[f"secrets/{secret}"] = str(value)
    if key is not None:
        tree[f"secrets/{HOST_KEY}.pub"] = str(key)
    place = os.path.join(module.tmpdir, f"{end}-{peer}")
    write_tree(place, tree)
    return os.path.join(place, "conf.d")


def told(pairs, errors):
    """What is wrong between us and a peer, in a line."""
    found = [
        f"{pair['tunnel']}: {d['code']} {d['message']} (ours {d['ours']}, theirs {d['theirs']})"
        for pair in pairs
        for d in pair["disagreements"]
        if d["code"]
    ]
    return "; ".join([*errors, *found]) or "no tunnel of the two fits the other's"


if __name__ == "__main__":
    main()

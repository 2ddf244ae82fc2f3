#!/usr/bin/python
# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
from __future__ import annotations

DOCUMENTATION = r"""
module: apply
short_description: Put a gateway's policy in force
version_added: 0.1.0
description:
  - Puts policy files in force and keeps them, all of it or nothing, and touches only tunnels
    that differ.
  - Everything is checked before anything is replaced. If the daemon refuses the policy, a
    change fails, or the disk is full, policy, files and secrets are as they were.
  - Without O(files) and O(src), the files that are there are put in force.
options:
  files:
    description:
      - Policy files by their names, with or without C(.yaml). Each is a mapping, or text.
      - They stand beside those that are there, or with O(prune) in their place.
    type: dict
  src:
    description: A policy file on the gateway, or a directory of them, in the place of O(files).
    type: path
  prune:
    description: Whether the files given are all that there shall be.
    type: bool
    default: false
  secrets:
    description: Secrets by name, which the policy calls C(secret:NAME). Others stay as they are.
    type: dict
  generated:
    description: Names among O(secrets) that this run has generated. A diff does not show these.
    type: list
    elements: str
    default: []
  generated_keys:
    description: Public keys in O(files) that this run has generated. A diff does not show these.
    type: list
    elements: str
    default: []
  state:
    description:
      - V(applied) puts it in force.
      - V(confirmed) keeps what was applied with O(confirm), if that waits for it.
      - V(rolled_back) brings back the policy before the last one. The files stay.
    type: str
    choices: [applied, confirmed, rolled_back]
    default: applied
extends_documentation_fragment:
  - xfrmpy.gateway.common.program
  - xfrmpy.gateway.common.runtime_dir
  - xfrmpy.gateway.common.config_dir
  - xfrmpy.gateway.common.changes
  - xfrmpy.gateway.common.applying
author:
  - The xfrmpy authors (@xfrmpy)
"""

EXAMPLES = r"""
- name: Two tunnels, and no others
  xfrmpy.gateway.apply:
    prune: true
    files:
      office:
        peer: vpn.example.org
        psk: secret:office
        local: 10.1.0.0/16
        remote: 10.2.0.0/16
      branch:
        peer: 203.0.113.7
        psk: secret:branch
        local: 10.1.0.0/16
        remote: 10.3.0.0/16
    secrets:
      office: "{{ vault_office }}"
      branch: "{{ vault_branch }}"

- name: A change that takes itself back if the play does not come back
  xfrmpy.gateway.apply:
    src: /root/new-policy
    confirm: 120

- name: It has come back
  xfrmpy.gateway.apply:
    state: confirmed
"""

RETURN = r"""
changes:
  description: What happens to which tunnel, as C(xfrmpy plan) tells it.
  returned: always
  type: list
  elements: dict
  sample: [{tunnel: office, action: update, impact: hot, live: true, cuts: false, differences: []}]
drift:
  description: What others have changed of what is in force, and what is done about it.
  returned: always
  type: list
  elements: dict
confirm_seconds:
  description: Seconds until the change is taken back unless it is confirmed; null if it stays.
  returned: always
  type: float
failure:
  description: Why it failed, with the code, what was seen and what to do.
  returned: failure
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.xfrmpy.gateway.plugins.module_utils.policy import (
    CHANGE,
    PolicyChange,
    Refused,
    files_of,
    keep_or_restore,
    take_turn,
    wanted_files,
)
from ansible_collections.xfrmpy.gateway.plugins.module_utils.xfrmpy import Xfrmpy, failed

NOTHING_TO_CONFIRM = "XF4023"


def main():
    module = AnsibleModule(
        argument_spec={
            **CHANGE,
            "files": {"type": "dict"},
            "src": {"type": "path"},
            "prune": {"type": "bool", "default": False},
            "secrets": {"type": "dict", "no_log": True},
            "generated": {"type": "list", "elements": "str", "default": []},
            "generated_keys": {
                "type": "list",
                "elements": "str",
                "default": [],
                "no_log": False,
            },
            "state": {
                "type": "str",
                "choices": ["applied", "confirmed", "rolled_back"],
                "default": "applied",
            },
        },
        mutually_exclusive=[("files", "src")],
        supports_check_mode=True,
    )
    given = module.params
    take_turn(module)
    if given["state"] == "confirmed":
        confirm(module)
    elif given["state"] == "rolled_back":
        roll_back(module)
    if given["prune"] and given["files"] is None and given["src"] is None:
        module.fail_json(msg="`prune` without `files` or `src` would remove every tunnel")
    files = files_of(module, given["src"]) if given["src"] else {}
    files.update(wanted_files(module, given["files"] or {}))
    generated = {key: given[key] for key in ("generated", "generated_keys")}
    PolicyChange(module, files, given["prune"], given["secrets"], **generated).run()


def confirm(module):
    """Keep what was applied; it is no change if nothing waits for that."""
    if module.check_mode:
        module.exit_json(changed=False)
    try:
        answer = keep_or_restore(module, Xfrmpy(module), ("confirm",))
    except Refused as refused:
        if refused.failure["code"] == NOTHING_TO_CONFIRM:
            module.exit_json(changed=False)
        module.fail_json(**failed(refused.failure, refused.code))
    except OSError as error:
        module.fail_json(msg=f"{error.filename} cannot be written: {error.strerror}")
    module.exit_json(changed=True, files=answer["files"])


def roll_back(module):
    if module.check_mode:
        module.exit_json(changed=True)
    answer = Xfrmpy(module).must("rollback", f"--timeout={module.params['timeout']}")
    module.exit_json(changed=bool(answer["changes"]), changes=answer["changes"])


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
from __future__ import annotations

DOCUMENTATION = r"""
module: tunnel
short_description: A tunnel of a gateway
version_added: 0.1.0
description:
  - Puts one tunnel in force or takes it away, whatever others there are, brings tunnels up or
    down, or waits for them.
options:
  name:
    description: Its name. With O(state=up), V(down) or V(wait) there may be several.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(present) puts O(policy) in force as the file of that name. The tunnel is brought up as its
        C(start) says.
      - V(absent) removes that file, and with it the tunnel.
      - V(up) and V(down) bring it there, and wait until it is.
      - V(wait) only waits until it is up.
    type: str
    choices: [present, absent, up, down, wait]
    default: present
  policy:
    description: The tunnel as a policy file has it, with O(state=present).
    type: dict
  secret:
    description: The shared key, which O(policy) calls C(secret:NAME) by the name of the tunnel.
    type: str
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
- name: A tunnel to the office
  xfrmpy.gateway.tunnel:
    name: office
    policy:
      peer: vpn.example.org
      psk: secret:office
      local: 10.1.0.0/16
      remote: 10.2.0.0/16
      start: auto
    secret: "{{ vault_office }}"

- name: It must be up before the backup runs
  xfrmpy.gateway.tunnel:
    name: office
    state: wait
    timeout: 30
"""

RETURN = r"""
changes:
  description: What happens to which tunnel, as C(xfrmpy plan) tells it.
  returned: with O(state=present) and O(state=absent)
  type: list
  elements: dict
  sample: [{tunnel: office, action: update, impact: hot, live: true, cuts: false, differences: []}]
drift:
  description: What others have changed of what is in force, and what is done about it.
  returned: with O(state=present) and O(state=absent)
  type: list
  elements: dict
confirm_seconds:
  description: Seconds until the change is taken back unless it is confirmed; null if it stays.
  returned: with O(state=present) and O(state=absent)
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
    remaining_files,
    take_turn,
    wanted_files,
)
from ansible_collections.xfrmpy.gateway.plugins.module_utils.xfrmpy import (
    Xfrmpy,
    failed,
    failure_of,
    named,
)


def main():
    module = AnsibleModule(
        argument_spec={
            **CHANGE,
            "name": {"type": "list", "elements": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["present", "absent", "up", "down", "wait"],
                "default": "present",
            },
            "policy": {"type": "dict"},
            "secret": {"type": "str", "no_log": True},
        },
        required_if=[("state", "present", ["policy"])],
        supports_check_mode=True,
    )
    state = module.params["state"]
    if state in ("present", "absent"):
        change_file(module, state)
    elif state == "wait":
        wait(module)
    else:
        bring(module, state)


def change_file(module, state):
    names = module.params["name"]
    if len(names) != 1:
        module.fail_json(
            msg=f"state={state} is for one tunnel at a time, and {len(names)} are named"
        )
    take_turn(module)
    if state == "absent":
        PolicyChange(module, remaining_files(module, names[0]), prune=True).run()
    secret = module.params["secret"]
    files = wanted_files(module, {names[0]: module.params["policy"]})
    PolicyChange(module, files, secrets={names[0]: secret} if secret is not None else None).run()


def bring(module, verb):
    """`xfrmpy up` or `down`; what is there already is no change."""
    xfrmpy, names = Xfrmpy(module), module.params["name"]
    tunnels = named(module, xfrmpy.must("status"), names)
    if module.check_mode:
        is_change = {name: (tunnels[name]["state"] == "up") != (verb == "up") for name in names}
        module.exit_json(changed=any(is_change.values()))
    code, answer = xfrmpy.ask(verb, *names, f"--timeout={module.params['timeout']}")
    failures = [each for each in answer.get("tunnels", ()) if each["failure"]]
    if failures:
        why = failed(failures[0]["failure"], code)
        others = "".join(f" Also not {verb}: {each['name']}." for each in failures[1:])
        module.fail_json(**{**why, "msg": f"{failures[0]['name']}: {why['msg']}{others}"})
    if code:
        module.fail_json(**failed(failure_of(answer), code))
    module.exit_json(changed=any(each["changed"] for each in answer["tunnels"]))


def wait(module):
    xfrmpy = Xfrmpy(module)
    named(module, xfrmpy.must("status"), module.params["name"])
    for name in module.params["name"] if not module.check_mode else ():
        code, answer = xfrmpy.ask("wait", name, f"--timeout={module.params['timeout']}")
        failure = failure_of(answer)
        if code:
            told = failed(failure, code)["msg"] if failure else f"it is {answer.get('state')}"
            module.fail_json(msg=f"{name} is not up: {told}", rc=code, failure=failure)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()

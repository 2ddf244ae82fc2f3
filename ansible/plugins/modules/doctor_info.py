#!/usr/bin/python
# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
from __future__ import annotations

DOCUMENTATION = r"""
module: doctor_info
short_description: What of a gateway is in the way of its tunnels
version_added: 0.1.0
description:
  - Tells what C(xfrmpy doctor) finds wrong with the host and its policy, and what to do.
  - Problems do not fail the task, so that it can be asked of a whole fleet; see the examples.
extends_documentation_fragment:
  - xfrmpy.gateway.common.program
  - xfrmpy.gateway.common.runtime_dir
  - xfrmpy.gateway.common.config_dir
  - xfrmpy.gateway.common.info
author:
  - The xfrmpy authors (@xfrmpy)
"""

EXAMPLES = r"""
- name: Examine the gateway
  xfrmpy.gateway.doctor_info:
  register: gateway_doctor

- name: Go on only where nothing is wrong
  ansible.builtin.assert:
    that: gateway_doctor.problems | length == 0
    fail_msg: "{{ gateway_doctor.problems | join('; ') }}"
"""

RETURN = r"""
findings:
  description: What each check has found, with the keys that C(xfrmpy doctor -o json) has.
  returned: always
  type: list
  elements: dict
  sample:
    - check: forwarding
      verdict: problem
      code: ""
      summary: this host forwards no IPv4, and there are subnets behind it
      evidence: [{label: net.ipv4.ip_forward, seen: "0"}]
      fixes: ["`sysctl -w net.ipv4.ip_forward=1`, and the same in /etc/sysctl.d"]
counts:
  description: How many findings there are of each verdict.
  returned: always
  type: dict
  sample: {ok: 14, note: 1, problem: 1, unseen: 0}
problems:
  description: The problems among them, a sentence each.
  returned: always
  type: list
  elements: str
  sample: ["forwarding: this host forwards no IPv4, and there are subnets behind it"]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.xfrmpy.gateway.plugins.module_utils.xfrmpy import (
    COMMON,
    CONFIG_DIR,
    Xfrmpy,
)


def main():
    module = AnsibleModule(
        argument_spec={**COMMON, "config_dir": {"type": "path", "default": CONFIG_DIR}},
        supports_check_mode=True,
    )
    answer = Xfrmpy(module).must("doctor")
    found = [each for each in answer["findings"] if each["verdict"] == "problem"]
    module.exit_json(
        changed=False,
        findings=answer["findings"],
        counts=answer["counts"],
        problems=[f"{each['check']}: {each['summary']}" for each in found],
    )


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
from __future__ import annotations

DOCUMENTATION = r"""
module: tunnel_info
short_description: The tunnels of a gateway
version_added: 0.1.0
description:
  - Tells what C(xfrmpy status) does of all tunnels, or of those that are named.
options:
  name:
    description: Only these. Each must be in the policy.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - xfrmpy.gateway.common.program
  - xfrmpy.gateway.common.runtime_dir
  - xfrmpy.gateway.common.info
author:
  - The xfrmpy authors (@xfrmpy)
"""

EXAMPLES = r"""
- name: Which tunnels are up?
  xfrmpy.gateway.tunnel_info:
  register: gateway_tunnels
"""

RETURN = r"""
tunnels:
  description: The tunnels by name, with the keys that C(xfrmpy status -o json) has.
  returned: always
  type: dict
  sample: {office: {state: up, peer: vpn.example.org, children: []}}
daemon:
  description: The daemon's version, process, age, and what it has dropped.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.xfrmpy.gateway.plugins.module_utils.xfrmpy import COMMON, Xfrmpy, named


def main():
    module = AnsibleModule(
        argument_spec={**COMMON, "name": {"type": "list", "elements": "str", "default": []}},
        supports_check_mode=True,
    )
    status = Xfrmpy(module).must("status")
    tunnels = named(module, status, module.params["name"])
    module.exit_json(changed=False, daemon=status["daemon"], tunnels=tunnels)


if __name__ == "__main__":
    main()

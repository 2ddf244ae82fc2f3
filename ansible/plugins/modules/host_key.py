#!/usr/bin/python
# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
from __future__ import annotations

DOCUMENTATION = r"""
module: host_key
short_description: The key by which a gateway proves who it is
version_added: 0.1.0
description:
  - Tells the public key of C(secret:host.key), and makes the pair if there is none yet.
  - The private key never leaves the gateway.
extends_documentation_fragment:
  - xfrmpy.gateway.common.program
  - xfrmpy.gateway.common.config_dir
  - xfrmpy.gateway.common.changes
author:
  - The xfrmpy authors (@xfrmpy)
"""

EXAMPLES = r"""
- name: Have a key of its own
  xfrmpy.gateway.host_key:
  register: gateway_host_key

- name: Show by what others know it
  ansible.builtin.debug:
    var: gateway_host_key.fingerprint
"""

RETURN = r"""
key:
  description: The public key, as C(auth.remote.key) of a policy has it; null if it would be made.
  returned: always
  type: str
  sample: MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
fingerprint:
  description: What people compare.
  returned: when it is there
  type: str
id:
  description: An identity that is made of it.
  returned: when it is there
  type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.xfrmpy.gateway.plugins.module_utils.xfrmpy import (
    CONFIG_DIR,
    HOST_KEY,
    Secrets,
    Xfrmpy,
)


def main():
    module = AnsibleModule(
        argument_spec={
            "config_dir": {"type": "path", "default": CONFIG_DIR},
            "program": {"type": "str", "default": "xfrmpy"},
        },
        supports_check_mode=True,
    )
    xfrmpy = Xfrmpy(module)
    path = Secrets(module, module.params["config_dir"]).path(HOST_KEY)
    result = {"changed": not os.path.exists(path), "key": None}
    if result["changed"]:
        headers = {"before_header": path, "after_header": path}
        result["diff"] = {**headers, "before": "", "after": f"{HOST_KEY}: newly generated\n"}
    if not (result["changed"] and module.check_mode):
        answer = xfrmpy.must("key", "show")
        result.update({name: answer[name] for name in ("key", "fingerprint", "id")})
    module.exit_json(**result)


if __name__ == "__main__":
    main()

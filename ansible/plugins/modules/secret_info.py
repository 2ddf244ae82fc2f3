#!/usr/bin/python
# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
from __future__ import annotations

DOCUMENTATION = r"""
module: secret_info
short_description: Which secrets a gateway has
version_added: 0.1.0
description:
  - Tells of secrets in C(/etc/xfrmpy/secrets) whether they are there, and their fingerprints.
  - With O(reveal) it returns the secrets themselves, for a play that brings them to other
    gateways. Such a task must have C(no_log).
options:
  name:
    description: Their names.
    type: list
    elements: str
    default: []
  prefix:
    description: Also all whose names begin so.
    type: str
  reveal:
    description: Whether to return the secrets themselves.
    type: bool
    default: false
extends_documentation_fragment:
  - xfrmpy.gateway.common.config_dir
  - xfrmpy.gateway.common.info
author:
  - The xfrmpy authors (@xfrmpy)
"""

EXAMPLES = r"""
- name: Do both ends have the same key?
  xfrmpy.gateway.secret_info:
    name: [office]
  register: gateway_secrets
"""

RETURN = r"""
fingerprints:
  description: By name, of those that are there.
  returned: always
  type: dict
  sample: {office: 3f29c1d07ab4}
secrets:
  description: The secrets by name, of those that are there.
  returned: with O(reveal)
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.xfrmpy.gateway.plugins.module_utils.xfrmpy import (
    CONFIG_DIR,
    Secrets,
    check_name,
    fingerprint,
)


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "default": []},
            "prefix": {"type": "str"},
            "reveal": {"type": "bool", "default": False},
            "config_dir": {"type": "path", "default": CONFIG_DIR},
        },
        supports_check_mode=True,
    )
    secrets = Secrets(module, module.params["config_dir"])
    names, prefix = module.params["name"], module.params["prefix"]
    for name in names:
        check_name(module, name, "the name of a secret")
    if prefix:
        names = sorted({*names, *(name for name in secrets.names() if name.startswith(prefix))})
    read = {name: secrets.read(name) for name in names}
    found = {name: secret for name, secret in read.items() if secret is not None}
    result = {"fingerprints": {name: fingerprint(secret) for name, secret in found.items()}}
    if module.params["reveal"]:
        result["secrets"] = {
            name: secret.decode(errors="surrogateescape") for name, secret in found.items()
        }
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()

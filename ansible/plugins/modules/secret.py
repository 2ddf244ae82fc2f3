#!/usr/bin/python
# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
from __future__ import annotations

DOCUMENTATION = r"""
module: secret
short_description: A secret of a gateway
version_added: 0.1.0
description:
  - Writes, generates or removes a file in C(/etc/xfrmpy/secrets), which a policy calls
    C(secret:NAME). It belongs to the user C(xfrmpy) where there is one, mode 0400.
  - The secret is in force with the next C(apply). It is shown nowhere. What is shown is a
    fingerprint, by which two gateways can be compared.
options:
  name:
    description: Its name.
    type: str
    required: true
  value:
    description: The secret.
    type: str
  generate:
    description: Whether 32 random octets are written, in hexadecimal, if there is no such secret.
    type: bool
    default: false
  force:
    description: Whether O(generate) also replaces one that is there.
    type: bool
    default: false
  state:
    description: Whether it is to be there.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - xfrmpy.gateway.common.config_dir
  - xfrmpy.gateway.common.changes
author:
  - The xfrmpy authors (@xfrmpy)
"""

EXAMPLES = r"""
- name: The key that the peer has, too
  xfrmpy.gateway.secret:
    name: office
    value: "{{ vault_office }}"

- name: A key made here, once
  xfrmpy.gateway.secret:
    name: branch
    generate: true
"""

RETURN = r"""
fingerprint:
  description: Twelve hexadecimal digits that differ if the secret does.
  returned: when it is there, and not only would be generated
  type: str
  sample: 3f29c1d07ab4
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.xfrmpy.gateway.plugins.module_utils.xfrmpy import (
    CONFIG_DIR,
    Secrets,
    check_name,
    fingerprint,
    secret_diff,
)

OCTETS = 32


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "value": {"type": "str", "no_log": True},
            "generate": {"type": "bool", "default": False},
            "force": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "config_dir": {"type": "path", "default": CONFIG_DIR},
        },
        mutually_exclusive=[("value", "generate")],
        supports_check_mode=True,
    )
    given = module.params
    name = given["name"]
    check_name(module, name, "the name of a secret")
    secrets = Secrets(module, given["config_dir"])
    before = secrets.read(name)
    after, is_generated = wanted(module, before)
    result = {"changed": before != after}
    if after is not None and not (is_generated and module.check_mode):
        result["fingerprint"] = fingerprint(after)
    if result["changed"]:
        result["diff"] = secret_diff(secrets.directory, name, before, after, is_generated)
    if result["changed"] and not module.check_mode:
        write(module, secrets, name, after)
    module.exit_json(**result)


def wanted(module, before):
    """The secret that shall be there (octets, or None), and whether it is a new random one."""
    given = module.params
    if given["state"] == "absent":
        return None, False
    if given["value"] is not None:
        if not given["value"].strip():
            module.fail_json(msg="`value` is empty")
        return given["value"].strip().encode(), False
    if not given["generate"]:
        module.fail_json(msg="one of `value` and `generate` is needed")
    if before is not None and not given["force"]:
        return before, False
    return os.urandom(OCTETS).hex().encode(), True


def write(module, secrets, name, after):
    try:
        if after is None:
            os.unlink(secrets.path(name))
        else:
            secrets.write(name, after)
            secrets.settle()
    except OSError as error:
        secrets.settle(restore=True)
        path = secrets.path(name)
        module.fail_json(msg=f"{path} cannot be written: {error.strerror}; it is as it was")


if __name__ == "__main__":
    main()

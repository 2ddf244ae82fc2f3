#!/usr/bin/python
# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
from __future__ import annotations

DOCUMENTATION = r"""
module: units
short_description: The systemd units of xfrmpy
version_added: 0.1.0
description:
  - Installs what C(xfrmpy units) shows. That is units for the daemon, for the block at boot
    and for services that need a tunnel, the daemon's user, and who owns its directories.
    Nothing is enabled or started.
options:
  program:
    description: The C(xfrmpy) command that the units start.
    type: path
    default: /opt/xfrmpy/bin/xfrmpy
extends_documentation_fragment:
  - xfrmpy.gateway.common.changes
author:
  - The xfrmpy authors (@xfrmpy)
"""

EXAMPLES = r"""
- name: Units for the xfrmpy in /opt
  xfrmpy.gateway.units:
"""

RETURN = r"""
files:
  description: The files that were written.
  returned: always
  type: list
  elements: str
  sample: [/etc/systemd/system/xfrmpyd.service]
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.xfrmpy.gateway.plugins.module_utils.xfrmpy import (
    read_octets,
    replace_file,
)

MODE = 0o644


def main():
    module = AnsibleModule(
        argument_spec={"program": {"type": "path", "default": "/opt/xfrmpy/bin/xfrmpy"}},
        supports_check_mode=True,
    )
    program = module.get_bin_path(module.params["program"], required=True)
    root = os.path.join(module.tmpdir, "units")
    install = [program, "units", "--install", f"--root={root}", f"--program={program}"]
    module.run_command(install, check_rc=True)
    wanted = {}
    for directory, _directories, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            wanted[path[len(root) :]] = read_octets(module, path)
    before = {path: read_octets(module, path) for path in wanted}
    different = sorted(path for path in wanted if before[path] != wanted[path])
    diff = [
        {
            "before_header": path,
            "after_header": path,
            "before": (before[path] or b"").decode(),
            "after": wanted[path].decode(),
        }
        for path in different
    ]
    for path in different if not module.check_mode else ():
        write(module, path, wanted[path])
    module.exit_json(changed=bool(different), files=different, diff=diff)


def write(module, path, octets):
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        replace_file(path, octets, MODE)
    except OSError as error:
        module.fail_json(msg=f"{path} cannot be written: {error.strerror}; it is as it was")


if __name__ == "__main__":
    main()

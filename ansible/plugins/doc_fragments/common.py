# Copyright The xfrmpy authors
# Apache-2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Options and attributes that several modules document alike."""

from __future__ import annotations


class ModuleDocFragment:
    PROGRAM = r"""
options:
  program:
    description: The C(xfrmpy) command, by its path, or its name if it is on the search path.
    type: str
    default: xfrmpy
"""
    RUNTIME_DIR = r"""
options:
  runtime_dir:
    description: Where the daemon's control socket is.
    type: path
    default: /run/xfrmpy
"""
    CONFIG_DIR = r"""
options:
  config_dir:
    description: Where C(conf.d) and C(secrets) are.
    type: path
    default: /etc/xfrmpy
"""
    CHANGES = r"""
attributes:
  check_mode:
    support: full
    description: Can run in check mode and tell what would be done.
  diff_mode:
    support: full
    description: Shows files as they are and will be, and secrets as fingerprints.
"""
    INFO = r"""
attributes:
  check_mode:
    support: full
    description: Can run in check mode and tell what would be done.
  diff_mode:
    support: none
    description: There is nothing to show.
"""

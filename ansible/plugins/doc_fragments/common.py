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
    APPLYING = r"""
options:
  confirm:
    description:
      - Seconds after which the daemon takes the change back by itself, unless O(state=confirmed) of
        M(xfrmpy.gateway.apply) comes before. With V(0) it stays.
      - The files are written when it is confirmed. Secrets are written at once, and stay.
    type: int
    default: 0
  timeout:
    description: Seconds to wait for each tunnel that changes.
    type: int
    default: 60
  allow_pending:
    description: Whether a peer may follow later. Its tunnel stays up as it was meanwhile.
    type: bool
    default: false
  accept_cut:
    description: Whether the change may cut the SSH session that it is made through.
    type: bool
    default: false
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

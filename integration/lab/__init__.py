"""The integration laboratory: namespaces, wires, foreign IKE daemons and our own, under test.

The scripts beside these modules stand on their own: `kernel-vm` (a Debian kernel with ESP in an
emulated machine), `strongswan-peer`, `libreswan-peer`, `install-packages`; each has `--help`.
"""

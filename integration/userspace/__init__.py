"""The userspace datapath on this machine."""

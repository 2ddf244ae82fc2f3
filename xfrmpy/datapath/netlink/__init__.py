"""Netlink, of whatever family: structures, messages, and the socket that asks the kernel."""

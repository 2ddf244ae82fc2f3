"""RADIUS as a client, sans-IO: users who are known to another server, and what is told it of them.

Read RFC 2865, 2866 (accounting), 3579 (EAP), 2548 (keys of MPPE) and 5080 (what was unclear).
pyrad encodes, decodes and verifies; it is imported where a policy has a RADIUS server, and nowhere
else.
"""

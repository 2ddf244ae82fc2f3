"""The language of the policy files: every key, what it takes and what it means.

Each section of a file has its module. A value is parsed where it stands, so a valid `Tunnel` holds
selectors, identities and proposals. What keys mean together, and their defaults, is decided in
`policy/resolve.py`. The descriptions feed the JSON schema and the reference page.
"""

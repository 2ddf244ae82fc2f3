"""Policy: what the operator wants, from strict YAML files to resolved values."""

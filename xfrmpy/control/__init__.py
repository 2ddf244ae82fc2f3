"""How the command line speaks with the daemon: NUL-terminated JSON on a local socket."""

"""The one long-running process: event loop, sockets, clock and log. It decides nothing itself."""

"""What must outlive the daemon, kept before anybody can see what follows from it."""

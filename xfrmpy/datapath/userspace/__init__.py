"""ESP without the kernel: a worker process between a TUN device and UDP port 4500."""

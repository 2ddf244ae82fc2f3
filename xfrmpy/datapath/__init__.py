"""SAD and SPD in force: `interface.py` is the contract, the folders are what keeps it."""

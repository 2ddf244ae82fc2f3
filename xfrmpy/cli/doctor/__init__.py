"""`xfrmpy doctor`: what of this host and its policy is in the way of tunnels.

`host.py` reads, `checks.py` and `settings.py` judge and touch nothing, `report.py` tells.
"""

"""`python -m xfrmpy.cli` is the `xfrmpy` command."""

from xfrmpy.cli.main import main

main()

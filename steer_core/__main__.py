"""`python -m steer_core` is the `steer` command."""

from steer_core.cli.main import main

main()

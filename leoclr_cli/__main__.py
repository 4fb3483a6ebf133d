"""`python -m leoclr.cli` is `leoclr`."""

from leoclr.cli.commands.app import main

if __name__ == "__main__":
    main()

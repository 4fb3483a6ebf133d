"""`python -m leoclr.cli` is `leoclr`."""

from leoclr.cli.app import main

if __name__ == "__main__":
    main()

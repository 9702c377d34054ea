"""`python -m brewer_core` is the command `brewer`."""

from brewer_core.cli import main

if __name__ == "__main__":
    main()

"""`python -m modalkit.cli` is the `modalkit` command."""

from modalkit.cli import main

if __name__ == "__main__":
    main()

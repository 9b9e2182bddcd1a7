"""`python -m nanreplay`."""

from nanreplay.commands import main

if __name__ == "__main__":
    main()

"""`python -m nanreplay`."""

from __future__ import annotations

from nanreplay.commands import main

if __name__ == "__main__":
    main()

"""``python -m nray`` is the ``nray`` command."""

from nray.cli import main

if __name__ == "__main__":
    main()

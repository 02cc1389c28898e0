"""`python -m mess`, which torchrun needs."""

from mess.cli.app import main

if __name__ == "__main__":
    main()

"""`python -m mess`, which torchrun needs."""

from mess.cli import main

if __name__ == "__main__":
    main()

"""`python -m trainer`, which is how torchrun starts it."""

from trainer.cli import main

if __name__ == "__main__":
    main()

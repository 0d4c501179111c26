"""`python -m actstore` is the command line `actstore`."""

from actstore.cli import main

if __name__ == "__main__":
    main()

"""`python -m actstore`."""

from actstore.cli import main

if __name__ == "__main__":
    main()

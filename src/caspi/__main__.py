"""`python -m caspi` is `caspi`."""

from caspi.cli import main

if __name__ == "__main__":
    main()

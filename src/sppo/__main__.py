"""`python -m sppo` works as `sppo` does."""

from sppo.cli.main import main

if __name__ == "__main__":
    main()

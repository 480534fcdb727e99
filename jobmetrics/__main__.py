"""`python -m jobmetrics` is the jobmetrics command."""

from jobmetrics.cli.main import main

if __name__ == "__main__":
    main()

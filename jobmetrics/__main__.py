"""Run the jobmetrics command with `python -m jobmetrics`."""

from jobmetrics.cli.main import main

if __name__ == "__main__":
    main()

"""Job systems' own test suites, run with jobmetrics in place. No file of theirs is kept here."""

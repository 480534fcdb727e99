"""Job systems' own test suites, run with jobmetrics. Their files are not kept here."""

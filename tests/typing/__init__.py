"""Only type-checked, by `make types`: nothing in here runs."""

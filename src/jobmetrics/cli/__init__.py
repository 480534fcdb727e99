"""The jobmetrics command."""

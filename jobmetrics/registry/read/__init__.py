"""The read side: what the exporter reads from a registry directory. Workers import none of it."""

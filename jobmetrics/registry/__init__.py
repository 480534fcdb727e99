"""The registry directory: forked workers record into memory-mapped slots, the exporter adds them up."""

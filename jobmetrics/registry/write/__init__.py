"""The write side: how a process leases a slot and records into it."""

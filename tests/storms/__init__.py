"""Storms: many processes that record, fork, move and die at random, and a ledger that must agree at the end."""

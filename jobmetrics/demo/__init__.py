"""The demo: real workers, real files, the real exporter, and a comparison of what ran with what was counted.

`jobmetrics.demo.run.main` composes it. Nothing here is used by the rest of the package, and the
ledger that the numbers are compared with shares no code with the recording.
"""

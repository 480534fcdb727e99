"""The shop's jobs for RQ. What turns jobmetrics on is the worker's class: `--worker-class jobmetrics.rq.Worker`."""

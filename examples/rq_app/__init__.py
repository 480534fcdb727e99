"""The shop's jobs for RQ. The worker class turns jobmetrics on: `--worker-class jobmetrics.rq.Worker`."""

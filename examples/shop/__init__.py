"""A small shop that takes in order files from partners: the work, free of Celery and RQ, that both examples run."""

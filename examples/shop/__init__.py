"""A small shop that imports order files from partners. Both examples run it; it uses neither Celery nor RQ."""

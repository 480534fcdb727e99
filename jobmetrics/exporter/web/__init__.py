"""The exporter over HTTP: its pages, who may see them, and the server."""

"""The exporter: reads the registry directory and the brokers, and serves what it finds to Prometheus."""

"""Watches a served deployment: metrics of its GPUs, replicas and SLO, and the files for Prometheus."""

"""Watches a deployment that is served: metrics of its GPUs, replicas and SLO, and the files for Prometheus."""

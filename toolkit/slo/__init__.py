"""Judges a load test by the SLO of its deployment: metrics, intervals, verdicts. Reads and shows nothing."""

"""The report of tests at several rates."""

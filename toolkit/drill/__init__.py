"""`toolkit drill`: makes failures happen under load, and judges what `toolkit up` promises about each."""

"""`toolkit drill`: makes each failure happen while requests come, and judges what toolkit up promises about it."""

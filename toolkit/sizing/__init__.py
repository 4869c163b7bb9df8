"""How much memory a deployment takes: arithmetic only."""

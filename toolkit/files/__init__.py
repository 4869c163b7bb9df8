"""Files: atomic writing, JSON, YAML, artifacts (partial, lock, rename), and what the distribution brings."""

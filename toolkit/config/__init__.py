"""The deployment that a YAML describes: its sections, rules and loading."""

"""How long a step takes: a closed form, measurements, and other tools' tables."""

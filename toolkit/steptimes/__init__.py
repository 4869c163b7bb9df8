"""Says how long a step takes: by a closed form, by measurements, or by the tables of another tool."""

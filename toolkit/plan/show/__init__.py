"""Shows a plan: text, JSON, page."""

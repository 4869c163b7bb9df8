"""What all HTML pages share: the look, the plots, and rendering."""

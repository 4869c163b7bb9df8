"""What every HTML page of ours shares: the look, the plots, and how a page comes to its file."""

"""Small models to rehearse with, written as Hugging Face directories."""

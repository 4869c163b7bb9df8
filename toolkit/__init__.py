"""From a Hugging Face checkpoint to a served, load-tested Triton deployment. Start at docs/why/tour.md."""

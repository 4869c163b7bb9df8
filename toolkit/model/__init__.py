"""The model: shape, parameters and weights, ranks, tokenizer, chat template, samples."""

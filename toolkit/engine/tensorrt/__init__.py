"""Building TensorRT engines with the vendor's `trtllm-build`, which runs as a subprocess and is never imported."""

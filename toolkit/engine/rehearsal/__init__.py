"""An engine that rehearses TensorRT-LLM's: the same ranks, steps and answers, computed on CPUs.

Reading order: batch (what a step is), model, kv, comm, worker, engine; beside them request and sampling.
"""

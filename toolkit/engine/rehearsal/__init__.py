"""An engine that rehearses TensorRT-LLM's: the same ranks, messages, scheduling and answers, on CPUs.

Reading order: settings, batch (what a step is), model, kv, comm, worker, sampling, engine.
"""

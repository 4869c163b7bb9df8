"""An engine that rehearses TensorRT-LLM on CPUs: the same ranks, the same steps, the same answers.

Reading order: batch (what a step is), model, kv, comm, worker, engine. `toolkit.engine.request` and `sampling` next to
them say what a request can ask for. `build` makes the engine directory.
"""

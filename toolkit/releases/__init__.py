"""What each supported release of TensorRT-LLM takes: flags of trtllm-build, parameters of the models, containers.

The facts are text tables, one file a kind. docs/reference/contracts.md says where they are from and which are not
confirmed.
"""

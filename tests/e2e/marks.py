"""Which groups a test runs on."""

import pytest

one_rank = pytest.mark.parametrize("served", [1], indirect=True, ids=["1 rank"])
eight_ranks = pytest.mark.parametrize("served", [8], indirect=True, ids=["8 ranks"])
every_size = pytest.mark.parametrize("served", [1, 4, 8], indirect=True, ids=["1 rank", "4 ranks", "8 ranks"])
both_models = pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])

"""Which groups a test runs on."""

import pytest

no_group = pytest.mark.parametrize("served", [0], indirect=True, ids=["no group"])
one_rank = pytest.mark.parametrize("served", [1], indirect=True, ids=["1 rank"])
eight_ranks = pytest.mark.parametrize("served", [8], indirect=True, ids=["8 ranks"])
every_size = pytest.mark.parametrize("served", [1, 4, 8], indirect=True, ids=["1 rank", "4 ranks", "8 ranks"])
both_models = pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])

"""Which groups a test runs on."""

import pytest

one_rank = pytest.mark.parametrize("served", [1], indirect=True, ids=["1 rank"])
every_size = pytest.mark.parametrize("served", [1, 4, 8], indirect=True, ids=["1 rank", "4 ranks", "8 ranks"])
both_models = pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])

"""Rules: models that call each other agree on streaming (model_transaction_policy { decoupled }).

An ensemble is decoupled if its steps are: Triton sets this itself (ValidateEnsembleConfig in
triton-inference-server/core ensemble_utils.cc) and ignores the ensemble's own file.
"""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.lint.finding import Finding
from toolkit.lint.repository import Model, Repository
from toolkit.releases.release import Release

BLS = "tensorrt_llm_bls"
AT = "model_transaction_policy"


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    """Find models that call each other and disagree on streaming."""
    bls = repository.models.get(BLS)
    if bls is None or bls.config is None:
        return
    called = repository.called_by(bls)
    if called is None or called.config is None or _decoupled(repository, called) == bls.decoupled:
        return
    if bls.decoupled:
        what = f"is decoupled, and {called.name}, which it calls, is not: requests with stream: true fail"
    elif repository.ours or repository.ours_without_engines:
        what = f"is not decoupled, and {called.name}, which it calls, is: requests with stream: true fail"
    else:
        what = f"is not decoupled, and {called.name}, which it calls, is: Triton refuses the calls of single prompts"
    fix = f"Set decoupled to the same value in {bls.path} and {called.path}."
    yield bls.finding("decoupled", "answers", what, fix, at=AT)


def _decoupled(repository: Repository, model: Model) -> bool:
    """Whether a model is decoupled. NVIDIA's llmapi model takes it from model.yaml."""
    for llm in repository.llm_models:
        if llm.model is model and not llm.yaml.ours and llm.yaml.triton is not None:
            return bool(llm.yaml.triton.get("decoupled"))
    return model.decoupled

"""Prompts have exactly the tokens that were asked for, as transformers counts them, and share what they should."""

import json
import os
import shutil
import subprocess
import sys
from itertools import combinations

import pytest
from transformers import AutoTokenizer

from tests.repository.sources import prompts
from tests.repository.tokenizers_for_tests import sentence_piece_tokenizer
from toolkit.errors import ToolkitError
from toolkit.repository.token_table import write_token_table
from toolkit.workload.words import Piece, Writer


@pytest.fixture(scope="module")
def encode(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    return lambda text: tokenizer(text)["input_ids"]


def common(one: list[int], other: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("shared", [0, 1, 40])
def test_lengths_are_exact(plan, encode, shared):
    found = plan(prompt_tokens={"min": 45, "max": 300}, shared_prefix_tokens=shared, requests=60)
    sent = [found[number] for number in found.firsts]
    assert [len(encode(request.prompt)) for request in sent] == [request.prompt_tokens for request in sent]
    assert len({request.prompt_tokens for request in sent}) > 30
    assert encode(sent[0].prompt)[0] == 0  # BOS is one of them


def test_a_shared_prefix_is_shared_token_by_token_and_no_more(plan, encode):
    """1,000 requests are numbered by two of a hundred words, the lower digit first."""
    found = plan(prompt_tokens=80, shared_prefix_tokens=40, requests=1000)
    ids = [encode(found[number].prompt) for number in range(0, 1000, 25)]
    assert all(40 <= common(one, other) < 42 for one, other in combinations(ids, 2))
    neighbours = [encode(found[number].prompt) for number in (7, 8)]
    assert common(*neighbours) == 40


def test_prompts_that_share_nothing_share_bos_alone(plan, encode):
    found = plan(prompt_tokens=50, requests=20)
    assert all(common(encode(found[n].prompt), encode(found[m].prompt)) == 1 for n, m in combinations(range(20), 2))


def test_blocks_of_a_trace(plan, encode, tmp_path):
    """Equal ids are equal tokens, block by block; a third of only 476 tokens begins as a whole one."""
    lines = [([1, 2, 3], 1500), ([1, 2, 4], 1500), ([1, 2, 3, 9], 1600), ([5], 600), ([], 600), ([5], 600)]
    text = "\n".join(
        json.dumps({"timestamp": 1000 * n, "input_length": length, "output_length": 3, "hash_ids": ids})
        for n, (ids, length) in enumerate(lines)
    )
    (tmp_path / "t.jsonl").write_text(text)
    found = plan(kind="trace", trace="t.jsonl")
    ids = [encode(found[number].prompt) for number in range(6)]
    assert [len(one) for one in ids] == [length for _, length in lines]
    assert [common(ids[0], other) for other in ids] == [1500, 1024, 1500, 1, 1, 1]
    assert common(ids[3], ids[5]) == 512 and common(ids[3], ids[4]) == 1
    traffic = found.traffic()
    assert traffic is not None and traffic.shares_prefixes
    assert [common(list(traffic.requests[0].prompt), list(r.prompt)) for r in traffic.requests][:3] == [
        1500,
        1024,
        1500,
    ]


HASHES = """
import hashlib, sys
from pathlib import Path
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.workload.file import load_workload
from toolkit.workload.load_plan import load_plan
found = load_plan(load_workload(sys.argv[1]), load_deployment(sys.argv[2]))
print(hashlib.sha256(repr([found[number] for number in map(int, sys.argv[3:])]).encode()).hexdigest())
"""


def test_a_request_is_the_same_in_every_process_whatever_was_made_before(tiny_llama, workload_file):
    from tests.workload.conftest import SMALL

    file = workload_file(prompt_tokens={"mean": 60, "cv": 0.5, "max": 200, "min": 8}, requests=500, output_tokens=20)

    def asked(seed: str, *numbers: int) -> str:
        command = [sys.executable, "-c", HASHES, str(file), str(SMALL), *map(str, numbers)]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    import hashlib

    from toolkit.config.load import load_deployment
    from toolkit.workload.file import load_workload
    from toolkit.workload.load_plan import load_plan

    found = load_plan(load_workload(file), load_deployment(SMALL))
    every = {number: found[number] for number in reversed(found.firsts)}
    expected = hashlib.sha256(repr([every[number] for number in (499, 3, 250)]).encode()).hexdigest()
    assert asked("1", 499, 3, 250).strip() == asked("2", 499, 3, 250).strip() == expected


def test_a_seed_makes_other_prompts(plan):
    one, same, other = (plan(prompt_tokens=30, requests=3, seed=seed) for seed in (1, 1, 2))
    assert [one[n] for n in range(3)] == [same[n] for n in range(3)]
    assert all(one[n].prompt != other[n].prompt for n in range(3))


def test_a_tokenizer_that_puts_a_space_before_every_text(tmp_path):
    """Llama 2's: four words, and BOS."""
    tokenizer = sentence_piece_tokenizer(tmp_path / "tokenizer.json")
    writer = Writer(tmp_path / "tokenizer.json", seed=0, names=100)
    texts = [writer.prompt([Piece(0, 5), Piece(n, 20)]) for n in range(1, 100)]
    ids = [tokenizer.encode(text).ids for text in texts]
    assert {len(one) for one in ids} == {25} and {one[0] for one in ids} == {1}
    assert len(set(texts)) == 99 and all(one[:5] == ids[0][:5] for one in ids)


def test_what_cannot_be_exact_is_an_error_with_its_numbers(plan, tiny_llama, tmp_path):
    found = plan(prompt_tokens=1, requests=1)
    with pytest.raises(ToolkitError, match=r"tokenizer.json: a prompt of 1 tokens has no room for words: .* adds 1"):
        found[0]
    with pytest.raises(ToolkitError, match=r"prompts of 2 tokens have 1 of their own, 1,000 requests need 2 to differ"):
        plan(prompt_tokens=2, requests=1000)
    content = json.loads((tiny_llama / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    content["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ToolkitError, match=r"only 0 of its words stay one token each in a text, expected 2 or more"):
        Writer(tmp_path / "tokenizer.json", 0, 1)


def test_counts_are_those_of_preprocessing(plan, tiny_llama, tmp_path):
    """The model of the repository itself: it adds BOS, once."""
    shutil.copy(tiny_llama / "tokenizer.json", tmp_path)
    write_token_table(tmp_path / "tokenizer.json", tmp_path)
    served = prompts.PromptTokenizer(tmp_path, add_special_tokens=True, vocab_size=512, max_seq_len=512)
    for keys in ({"prompt_tokens": 77, "requests": 3}, {"kind": "chat", "requests": 3}):
        for request in plan(**keys):
            assert request.prompt_tokens == len(served.prompt_ids(request.prompt))


@pytest.mark.slow
def test_smollm2_with_long_prompts(plan, smollm2, tmp_path):
    shutil.copytree(smollm2, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    found = plan(model=smollm2, prompt_tokens=1024, shared_prefix_tokens=300, requests=40)
    ids = [tokenizer(found[number].prompt)["input_ids"] for number in range(40)]
    assert {len(one) for one in ids} == {1024}
    assert all(common(one, other) == 300 for one, other in combinations(ids, 2))

"""Secrets are taken out of any text, and what only looks a little like one stays."""

import json

import pytest

from toolkit.secrecy import INSTEAD, Scrubber, is_secret

HF = "hf_" + "AbCdEfGh1234567890AbCdEfGh12345678"
NVAPI = "nvapi-" + "x9-Y8_z7" * 8
VARIABLES = {
    "HF_TOKEN": "of-the-environment",
    "DB_PASSWORD": 'two "words" & more',
    "PASSWORD": "short",
    "HOME": "/home/x",
}
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQ\nxyz\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text, left",
    [
        ("logged in with of-the-environment.", f"logged in with {INSTEAD}."),
        (json.dumps({"x": VARIABLES["DB_PASSWORD"]}), json.dumps({"x": INSTEAD})),
        ("http://u/?q=two%20%22words%22%20%26%20more", f"http://u/?{INSTEAD}"),
        (f"I 12:00 token is {HF} now", f"I 12:00 token is {INSTEAD} now"),
        (f"key={NVAPI}", f"key={INSTEAD}"),
        ("NGC_API_KEY=abc rest", f"NGC_API_KEY={INSTEAD} rest"),
        ("export WANDB_API_KEY='a b' rest", f"export WANDB_API_KEY='{INSTEAD}' rest"),
        ('{"hf_token": "abc", "x": 1}', f'{{"hf_token": "{INSTEAD}", "x": 1}}'),
        ("my_secret: abc def", f"my_secret: {INSTEAD} def"),
        ("run --api-key abc --x 1", f"run --api-key {INSTEAD} --x 1"),
        ("run --hf-token=abc --x 1", f"run --hf-token={INSTEAD} --x 1"),
        ('["--password", "abc", "y"]', f'["--password", "{INSTEAD}", "y"]'),
        (
            'key: "api_key"\n  value: { string_value: "abc" }',
            f'key: "api_key"\n  value: {{ string_value: "{INSTEAD}" }}',
        ),
        ("HTTP Proxy: http://me:pass@proxy:3128", f"HTTP Proxy: http://{INSTEAD}@proxy:3128"),
        ("Authorization: Bearer abcdefgh12", f"Authorization: Bearer {INSTEAD}"),
        (f"before {KEY} after", f"before {INSTEAD} after"),
        ("GET https://u/m.bin?X-Amz-Signature=0a1&x=2 HTTP/1.1", f"GET https://u/m.bin?{INSTEAD} HTTP/1.1"),
        ("<a href='s3://b/c?sig=0a1'>", f"<a href='s3://b/c?{INSTEAD}'>"),
        ("# my key: 0a1b rest", f"# my key: {INSTEAD} rest"),
        ("key: '0a1b'", f"key: '{INSTEAD}'"),
        ("ssh_key=0a1b", f"ssh_key={INSTEAD}"),
        ("pass: 0a1b, user: me", f"pass: {INSTEAD}, user: me"),
        ('{"pass": "0a1b", "pwd": "c d"}', f'{{"pass": "{INSTEAD}", "pwd": "{INSTEAD}"}}'),
        ("Passphrase = 0a1b", f"Passphrase = {INSTEAD}"),
    ],
)
def test_a_secret_goes(text, left):
    assert Scrubber(VARIABLES).text(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "loaded: first token after 10.8 s; a short text at /home/x",
        '"eos_token": "<|eot_id|>", "time_to_first_token": {"unit": "ms"}',
        "max_num_tokens: 8192, tokens_per_block: 32, total_output_tokens=128",
        "KV/token/GPU 40,960 B; decode 29.5 ms a token",
        "pip install hf_transfer; HF_TOKEN; ghp_x; https://nvcr.io/nvidia@sha256",
        'parameters { key: "FORCE_CPU" value: { string_value: "yes" } }',
        'parameters [{\n  key: "max_tokens"\n  value { string_value: "5" } }]',
        "monkey: x; PWD=/home/x; key: 5; TTFT P99: PASS; what is this? http://u/x",
    ],
)
def test_what_is_none_stays(text):
    assert Scrubber(VARIABLES).text(text) == text


def test_data_stays_data():
    data = {"NGC_API_KEY": "a", "eos_token": "</s>", "list": ["HF_TOKEN=", {"a_token": 5}, None], "cmd": f"x {HF}"}
    data |= {"key": "x", "my key": "y", "pass": "z", "pass_rate": "9 %"}
    assert Scrubber({}).data(data) == {
        "NGC_API_KEY": INSTEAD,
        "eos_token": "</s>",
        "list": ["HF_TOKEN=", {"a_token": 5}, None],
        "cmd": f"x {INSTEAD}",
        "key": "x",
        "my key": INSTEAD,
        "pass": INSTEAD,
        "pass_rate": "9 %",
    }


def test_names_of_secrets():
    assert all(map(is_secret, ("HF_TOKEN", "NGC_API_KEY", "aws_secret_access_key", "api-key")))
    assert not any(map(is_secret, ("HF_TOKEN_PATH", "TOKENIZERS_PARALLELISM", "HOME", "NCCL_DEBUG")))

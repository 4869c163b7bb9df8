"""The directory that `toolkit repo` writes, and every way in which it refuses to."""

import json
import shutil

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tests.commands import toolkit
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.model.tokenizer import foreseen
from toolkit.repository import generate

from .conftest import built_deployment
from .sources import prompts
from .tokenizers_for_tests import sentence_piece_tokenizer

MODELS = {"ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls"}


@pytest.fixture
def model(tmp_path, tiny_llama):
    """A copy of the tiny Llama, to be damaged."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


def test_writes_five_models_once(tmp_path, model):
    deployment = built_deployment(tmp_path, model)
    assert generate(deployment) is True
    repository = deployment.repository_dir
    assert {path.name for path in repository.iterdir() if path.is_dir()} == MODELS
    for name in MODELS:
        text = (repository / name / "config.pbtxt").read_text()
        assert "${" not in text
        assert text_format.Parse(text, model_config_pb2.ModelConfig()).name == name
        assert (repository / name / "1").is_dir()
    assert generate(deployment) is False


def test_engines_have_no_python_model_and_rehearsals_do(tmp_path, model):
    (tmp_path / "rehearsal").mkdir()
    engines, rehearsal = built_deployment(tmp_path, model), built_deployment(tmp_path / "rehearsal", model, "rehearsal")
    generate(engines)
    generate(rehearsal)
    assert not list((engines.repository_dir / "tensorrt_llm" / "1").iterdir())
    assert (rehearsal.repository_dir / "tensorrt_llm" / "1" / "model.py").is_file()
    for deployment, backend in ((engines, "tensorrtllm"), (rehearsal, "python")):
        assert f'backend: "{backend}"' in (deployment.repository_dir / "tensorrt_llm" / "config.pbtxt").read_text()


def test_a_new_tokenizer_makes_a_new_repository(tmp_path, model):
    deployment = built_deployment(tmp_path, model)
    generate(deployment)
    content = json.loads((model / "tokenizer.json").read_text())
    content["added_tokens"][3]["special"] = False
    (model / "tokenizer.json").write_text(json.dumps(content))
    assert generate(deployment) is True


def test_model_sources_import_nothing_that_the_ngc_image_lacks(tmp_path, model):
    deployment = built_deployment(tmp_path, model)
    generate(deployment)
    for name in ("preprocessing", "postprocessing", "tensorrt_llm_bls"):
        for file in (deployment.repository_dir / name / "1").glob("*.py"):
            assert "toolkit." not in file.read_text() and "import toolkit" not in file.read_text()


def test_no_engine(tmp_path, model):
    deployment = built_deployment(tmp_path, model)
    shutil.rmtree(deployment.engine_dir)
    with pytest.raises(ToolkitError, match=r"there is no engine here.*Run: toolkit build"):
        generate(deployment)
    assert not deployment.repository_dir.exists()


def test_engine_of_other_limits(tmp_path, model):
    built_deployment(tmp_path, model)
    file = tmp_path / "deployment.yaml"
    file.write_text(file.read_text().replace("max_seq_len: 512", "max_seq_len: 256"))
    with pytest.raises(ToolkitError, match="was made with max_seq_len 512, the deployment says 256"):
        generate(load_deployment(file))


def damage_nothing_there(model):
    (model / "tokenizer.json").unlink()


def damage_truncated(model):
    (model / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes()[:1000])


def damage_no_tokenizer(model):
    (model / "tokenizer.json").write_text('{"version": "1.0"}')


def damage_larger_vocabulary(model):
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["vocab"]["one more"] = 512
    (model / "tokenizer.json").write_text(json.dumps(content))


def damage_decoder(model):
    content = json.loads((model / "tokenizer.json").read_text())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (model / "tokenizer.json").write_text(json.dumps(content))


def damage_eos(model):
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 512]}')


def damage_eos_in_the_config(model):
    (model / "config.json").write_text(
        (model / "config.json").read_text().replace('"eos_token_id": 1', '"eos_token_id": -1')
    )


def damage_eos_as_text(model):
    (model / "generation_config.json").write_text('{"eos_token_id": "1"}')


def damage_every_eos(model):
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        content = json.loads((model / name).read_text())
        content = {key: value for key, value in content.items() if not key.startswith("eos_token")}
        (model / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_nothing_there, r"tokenizer\.json: no such file.*AutoTokenizer"),
        (damage_truncated, r"tokenizer\.json: is not valid JSON"),
        (damage_no_tokenizer, r"tokenizer\.json: is not a tokenizer"),
        (damage_larger_vocabulary, r"tokenizer\.json: has token id 512, but the model's vocab_size is 512"),
        (damage_decoder, r"tokenizer\.json: decoder: WordPiece is not supported"),
        (damage_eos, r"generation_config\.json: eos_token_id: 512 is not a token of the model"),
        (damage_eos_in_the_config, r"/config\.json: eos_token_id: -1 is not a token of the model"),
        (damage_eos_as_text, r"generation_config\.json: eos_token_id: expected whole numbers, got '1'"),
        (damage_every_eos, r"model: no token ends an answer: .* name none\. Add \"eos_token_id\" to generation_config"),
    ],
)
def test_unusable_tokenizer(tmp_path, model, damage, message):
    deployment = built_deployment(tmp_path, model)
    damage(model)
    with pytest.raises(ToolkitError, match=message) as raised:
        generate(deployment)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in deployment.output.iterdir()) == ["engine"]


def test_sentence_piece_model(tmp_path, model):
    sentence_piece_tokenizer(model / "tokenizer.json")
    assert generate(built_deployment(tmp_path, model)) is True


def preprocessing(deployment) -> dict[str, str]:
    text = (deployment.repository_dir / "preprocessing" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    return {name: value.string_value for name, value in config.parameters.items()}


@pytest.mark.parametrize("engine", ["tensorrt", "pytorch"])
def test_the_tokenizer_alone_names_what_ends_an_answer(tmp_path, model, engine):
    (model / "generation_config.json").write_text('{"eos_token_id": null}')
    (model / "config.json").write_text((model / "config.json").read_text().replace('"eos_token_id": 1,', ""))
    deployment = built_deployment(tmp_path, model, engine)
    generate(deployment)
    if engine == "tensorrt":
        assert preprocessing(deployment)["eos_token_ids"] == "1"  # <|end|>, of tokenizer_config.json
    else:
        assert "eos_token_ids: [1]" in (deployment.repository_dir / "tensorrt_llm/1/model.yaml").read_text()


def test_ids_that_end_an_answer_are_united(tmp_path, model):
    (model / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    generate(deployment := built_deployment(tmp_path, model))
    assert preprocessing(deployment)["eos_token_ids"] == "2,7,1"


def with_padding_beyond(model) -> None:
    """A padding token behind the vocabulary, as fine-tuning adds it."""
    content = json.loads((model / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 512, "content": "[PAD]"})
    (model / "tokenizer.json").write_text(json.dumps(content))
    (model / "generation_config.json").write_text('{"eos_token_id": 1, "pad_token_id": 512}')


def test_a_padding_token_behind_the_vocabulary(tmp_path, model):
    with_padding_beyond(model)
    deployment = built_deployment(tmp_path, model)
    generate(deployment)
    assert preprocessing(deployment)["pad_token_id"] == "3"  # of config.json
    assert foreseen(deployment.model.path, deployment.shape.vocab_size) == [
        f"{model}/tokenizer.json: the model has no [PAD] (512): its vocab_size is 512. "
        "A prompt with such a token is refused."
    ]
    folder = deployment.repository_dir / "preprocessing/1/tokenizer"
    tokenizer = prompts.PromptTokenizer(folder, True, vocab_size=512, max_seq_len=512)
    plain = tokenizer.prompt_ids("Hello")
    assert plain and max(plain) < 512
    for text in ("[PAD]", "Hello [PAD] there"):
        with pytest.raises(prompts.Refused, match=r"text_input: holds \[PAD\] \(512\), the model's last token is 511"):
            tokenizer.prompt_ids(text)
    with pytest.raises(prompts.Refused, match="embedding_bias_words: holds"):
        tokenizer.embedding_bias(["[PAD]"], [1.0])
    assert tokenizer.words(["[PAD]"]) == []


@pytest.mark.parametrize("command", ["convert", "build"])
def test_what_repo_will_say_is_told_before_the_conversion(tmp_path, model, command):
    deployment = built_deployment(tmp_path, model, "rehearsal")
    with_padding_beyond(model)
    lines = toolkit(command, deployment.file).stderr.splitlines()
    said = [line.startswith("warning: ") and "the model has no [PAD] (512)" in line for line in lines]
    assert said.index(True) < next(n for n, line in enumerate(lines) if "converted" in line)
    (model / "tokenizer.json").unlink()
    assert (
        f"warning: toolkit repo will refuse this model: {model}/tokenizer.json: no such file."
        in toolkit(command, deployment.file).stderr
    )

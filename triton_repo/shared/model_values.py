"""The string parameters of config.pbtxt, which Triton gives a model when it loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


class ModelValues:
    """The parameters by name; made from the `args` of `initialize`."""

    def __init__(self, args: Mapping[str, str]) -> None:
        self.config = json.loads(args["model_config"])
        self._folder = Path(args["model_repository"])
        self._values: dict[str, str] = {key: value["string_value"] for key, value in self.config["parameters"].items()}

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def boolean(self, name: str) -> bool:
        return self._values[name].lower() in ("true", "1")

    def ids(self, name: str) -> list[int]:
        return [int(id) for id in self._values[name].split(",") if id]

    @property
    def tokenizer_dir(self) -> Path:
        """The folder of tokenizer.json and the token table. The parameter is relative to the model's folder."""
        return (self._folder / self._values["tokenizer_dir"]).resolve()

"""A calibration file as pydantic reads and writes it. docs/reference/calibration-file.md explains each field.

Nothing in the file is trusted: it may come from another machine, or from an editor. Unknown keys are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from toolkit.steptimes.fit import Part, Timing
from toolkit.steptimes.measured import MeasuredStep
from toolkit.steptimes.step import StepWork

Format = Literal["toolkit-step-times/1"]
FORMAT: Format = "toolkit-step-times/1"
Kind = Literal["layers", "steps"]
LARGEST_COUNT = 2**31
LONGEST_S = 1e6

Count = Annotated[int, Field(ge=0, lt=LARGEST_COUNT)]
Positive = Annotated[int, Field(ge=1, lt=LARGEST_COUNT)]
Seconds = Annotated[float, Field(gt=0, lt=LONGEST_S, allow_inf_nan=False)]
SecondsOrNone = Annotated[float, Field(ge=0, lt=LONGEST_S, allow_inf_nan=False)]
"""Seconds of something that may take no time at all."""


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Device(_Record):
    """What the times were measured on; `cores` of a GPU are its multiprocessors."""

    model_config = ConfigDict(extra="allow")

    cores: Positive
    kind: str = ""
    """cpu or cuda."""
    name: str = ""


class LayerModel(_Record):
    """The fields of config.json that decide how long a layer takes."""

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive


class StepModel(LayerModel):
    """The fields of config.json that decide how long a step takes."""

    num_hidden_layers: Positive


class Split(_Record):
    """The ranks that were timed."""

    tp: Positive
    pp: Positive


class LayerRow(_Record):
    """The time of one part of a layer."""

    part: Part
    tp: Positive
    tokens: Positive
    context: Count
    seconds: Seconds

    @field_validator("context")
    @classmethod
    def _attention_has_keys(cls, context: int, info: ValidationInfo) -> int:
        part = info.data.get("part")
        if part in ("context", "generation") and not context:
            raise PydanticCustomError("no_context", "a row of part {part} needs a whole number from 1", {"part": part})
        return context

    @property
    def timing(self) -> Timing:
        return Timing(self.part, self.tp, self.tokens, self.context, self.seconds)


class StepRow(_Record):
    """The times of one step, and what it computed."""

    kind: Literal["generation", "context", "mixed"]
    context_tokens: Count
    context_pairs: Annotated[float, Field(ge=0, lt=LARGEST_COUNT**2, allow_inf_nan=False)]
    contexts: Count
    generations: Count
    keys: Count
    emitted: Count
    stage_seconds: Annotated[tuple[Seconds, ...], Field(strict=False)]
    hop_seconds: SecondsOrNone
    finish_seconds: SecondsOrNone
    step_seconds: Seconds
    mean_step_seconds: Seconds | None = None
    repeats: Positive | None = None

    @model_validator(mode="after")
    def _computes_something(self) -> StepRow:
        if not self.work.tokens:
            raise PydanticCustomError("no_tokens", "context_tokens and generations are both 0: a step computes some")
        return self

    @property
    def work(self) -> StepWork:
        return StepWork(**{name: getattr(self, name) for name in StepWork._fields})

    @property
    def measured(self) -> MeasuredStep:
        return MeasuredStep(
            kind=self.kind,
            work=self.work,
            stage_seconds=self.stage_seconds,
            hop_seconds=self.hop_seconds,
            finish_seconds=self.finish_seconds,
            step_seconds=self.step_seconds,
        )


class Crowding(_Record):
    """How many times longer a step takes in service while so many are in flight, itself included."""

    in_flight: Positive
    slowdown: Annotated[float, Field(gt=0, lt=LONGEST_S, allow_inf_nan=False)]


class Header(_Record):
    """What says how to read the rest."""

    format: Format
    kind: Kind


class _File(Header):
    made: str = ""
    """When, as ISO 8601 in UTC."""
    versions: dict[str, str] = {}
    device: Device
    dtype: Literal["float16", "bfloat16", "float32"]
    notes: list[str] = []
    skipped: list[str] = []


class LayersFile(_File):
    """The parts of a layer, timed on one GPU."""

    model: LayerModel
    rows: Annotated[list[LayerRow], Field(min_length=1)]


class StepsFile(_File):
    """Whole steps of a rehearsal, timed on all its ranks."""

    model: StepModel
    parallel: Split
    rows: Annotated[list[StepRow], Field(min_length=1)]
    crowding: list[Crowding]
    outside_seconds: SecondsOrNone

    @model_validator(mode="after")
    def _every_stage_has_a_time(self) -> StepsFile:
        for number, row in enumerate(self.rows):
            if len(row.stage_seconds) != self.parallel.pp:
                place = {"row": number, "pp": self.parallel.pp, "times": len(row.stage_seconds)}
                what = "rows[{row}].stage_seconds has {times} values: give {pp}, one for each stage"
                raise PydanticCustomError("stages", what, place)
        return self


CalibrationFile = LayersFile | StepsFile
FILES: dict[Kind, type[LayersFile] | type[StepsFile]] = {"layers": LayersFile, "steps": StepsFile}
MODELS: dict[Kind, type[LayerModel]] = {"layers": LayerModel, "steps": StepModel}


def validated(content: dict[str, Any]) -> CalibrationFile:
    """The content of a calibration file, checked. Raises pydantic's ValidationError."""
    return FILES[Header.model_validate(content).kind].model_validate(content)

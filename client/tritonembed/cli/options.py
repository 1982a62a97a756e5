"""Options that several commands have, each with its text, its variable and its limits."""

from typing import Annotated

from tritonembed_protocol.limits import MAX_BATCH_SIZE
from tritonembed_protocol.policies import PolicyName
from tritonembed_protocol.types import InputType

from .connection import option

InputTypeOption = Annotated[
    InputType | None, option("--input-type", "Prepend the model's prompt for queries or passages.")
]
PromptName = Annotated[str | None, option("--prompt-name", "Name of the model's prompt to prepend.")]
Dimensions = Annotated[
    int | None,
    option("--dimensions", "Keep only the first dimensions of each vector.", min=1, show_default="the model's"),
]
Normalize = Annotated[
    bool | None,
    option("--normalize/--no-normalize", "Scale vectors to length 1, or do not.", show_default="the model's"),
]
Policy = Annotated[PolicyName, option("--policy", "Which --server gets the next request.")]
BatchSize = Annotated[int, option("--batch-size", "Texts per request.", min=1, max=MAX_BATCH_SIZE)]

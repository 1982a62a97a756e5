"""A model's template for an instruction before a query, with `{instruction}`.

The folder's own prompts show it: "Instruct: Given a web search query, …\\nQuery:" is the template of Qwen3-Embedding
with one instruction filled in. Models whose folders have no such prompt are known by name.
"""

import re
from collections.abc import Mapping

PLACE = "{instruction}"

_FORMS = tuple(
    re.compile(form, re.DOTALL)
    for form in (
        # Qwen3-Embedding, gte-Qwen2, the e5-instruct family and many others; they differ in white space.
        r"(Instruct:\s*)(\S.*?)(\s*\n\s*Query:\s*)",
        # GritLM.
        r"(<\|user\|>\n)(\S.*?)(\n<\|embed\|>\n)",
        # EmbeddingGemma.
        r"(task:\s*)(\S.*?)(\s*\|\s*query:\s*)",
    )
)
"""Prompts with an instruction: the text before it, the instruction, and the text after it."""

_E5 = f"Instruct: {PLACE}\nQuery: "
_NAMED = (
    (re.compile(r"e5-.*-instruct|gte-qwen.*-instruct|sfr-embedding|linq-embed-mistral", re.IGNORECASE), _E5),
    (re.compile(r"qwen3-embedding", re.IGNORECASE), f"Instruct: {PLACE}\nQuery:"),
    (re.compile(r"gritlm", re.IGNORECASE), f"<|user|>\n{PLACE}\n<|embed|>\n"),
)
"""Templates of the models' cards, by the last component of the model's name."""


def instruction_template(name: str, prompts: Mapping[str, str]) -> str | None:
    """The template of a model; None if neither its prompts nor its name show one.

    name: the last component of its name or folder. prompts: of its files. If they show several templates, the template
    of the prompt `query` counts.
    """
    found = {key: template for key, prompt in prompts.items() if (template := _template_of(prompt)) is not None}
    if "query" in found:
        return found["query"]
    if found:
        # There are several templates, but none for queries: any choice could be wrong.
        return next(iter(found.values())) if len(set(found.values())) == 1 else None
    return next((template for pattern, template in _NAMED if pattern.search(name)), None)


def fill(template: str, instruction: str) -> str:
    """The prompt with an instruction."""
    before, _, after = template.partition(PLACE)
    return before + instruction + after


def _template_of(prompt: str) -> str | None:
    for form in _FORMS:
        if found := form.fullmatch(prompt):
            return found[1] + PLACE + found[3]
    return None

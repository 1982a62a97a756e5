"""The parts of tokenizer.json that transformers 5's classes leave out.

In transformers 4 and text-embeddings-inference, tokenizer.json is the tokenizer, except for a few settings of the class
that tokenizer_config.json names. In transformers 5 most classes (BertTokenizer, RobertaTokenizer, XLMRobertaTokenizer,
...) take only the vocabulary and build normalizer, pre-tokenizer and model by their own rules. If a model has other
rules, its ids differ, without an error.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors

from tritonembed_engine.model.folder import read_object

CASE_SETTINGS = ("lowercase", "strip_accents", "handle_chinese_chars")
"""Settings of a BertNormalizer that classes take from tokenizer_config.json in every version of transformers."""

ADDS_ITS_ENDS = ("LlamaTokenizer", "GemmaTokenizer", "CodeLlamaTokenizer", "CohereTokenizer")
"""Classes that replace the file's post-processor by `add_bos_token` and `add_eos_token`."""


def restore_file_pipeline(tokenizer: Any, folder: Path) -> None:
    """Give a tokenizer of transformers the pipeline of the folder's tokenizer.json, as transformers 4 would.

    Without a tokenizer.json nothing changes. Raises ValueError if a token would have another id.
    """
    file = folder / "tokenizer.json"
    built = getattr(tokenizer, "backend_tokenizer", None)
    if not file.is_file() or not isinstance(built, Tokenizer):
        return
    config = read_object(folder / "tokenizer_config.json")
    if type(tokenizer).__name__ == "TokenizersBackend":
        # It runs the file as it is.
        if "add_prefix_space" in config:
            _set_prefix_space(built, {"type": "ByteLevel", "add_prefix_space": bool(config["add_prefix_space"])})
        return
    restored = Tokenizer.from_file(str(file))
    restored.encode_special_tokens = built.encode_special_tokens
    _add_tokens(restored, built, config)
    _set_case(restored, _state(built.normalizer))
    _set_prefix_space(restored, _state(built.pre_tokenizer))
    if type(tokenizer).__name__ in ADDS_ITS_ENDS:
        restored.post_processor = _ends(tokenizer, config)
    tokenizer._tokenizer = restored


def _add_tokens(restored: Tokenizer, built: Tokenizer, config: dict[str, Any]) -> None:
    """Tokens of tokenizer_config.json, with their flags, and the class's special ones, if the file lacks them."""
    listed = config.get("added_tokens_decoder") or {}
    # Two calls for all tokens, because `tokenizers` prepares all added tokens anew in every call.
    restored.add_tokens([AddedToken(**flags) for _, flags in sorted(listed.items(), key=lambda item: int(item[0]))])
    present = {token.content for token in restored.get_added_tokens_decoder().values()}
    wanted = sorted(built.get_added_tokens_decoder().items())
    restored.add_tokens([token for _, token in wanted if token.content not in present])
    for number, token in wanted:
        if restored.token_to_id(token.content) != number:
            raise ValueError(f"the token {number} has another id in tokenizer.json")


def _set_case(restored: Tokenizer, built: dict[str, Any]) -> None:
    state = _state(restored.normalizer)
    if state.get("type") == built.get("type") == "BertNormalizer":
        chosen = {**state, **{name: built[name] for name in CASE_SETTINGS}}
        del chosen["type"]
        restored.normalizer = normalizers.BertNormalizer(**chosen)


def _set_prefix_space(restored: Tokenizer, built: dict[str, Any]) -> None:
    state = _state(restored.pre_tokenizer)
    if state.get("type") == built.get("type") == "ByteLevel":
        restored.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=built["add_prefix_space"], use_regex=state.get("use_regex", True)
        )


def _ends(tokenizer: Any, config: dict[str, Any]) -> Any:
    first = tokenizer.bos_token if config.get("add_bos_token", True) else None
    last = tokenizer.eos_token if config.get("add_eos_token", False) else None
    text, pair = "$A:0", "$B:1"
    if first is not None:
        text, pair = f"{first}:0 {text}", f"{first}:1 {pair}"
    if last is not None:
        text, pair = f"{text} {last}:0", f"{pair} {last}:1"
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (first, last) if token is not None]
    return processors.TemplateProcessing(single=text, pair=f"{text} {pair}", special_tokens=ends)


def _state(part: Any) -> dict[str, Any]:
    return {} if part is None else dict(json.loads(part.__getstate__()))

"""Models whose tokenizer.json has rules of its own, which the class in tokenizer_config.json would not build.

transformers 5 takes no more than the vocabulary from tokenizer.json for these classes. The reference is the same model
with PreTrainedTokenizerFast, which runs the file as it is, as transformers 4 did for every class.
"""

from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

from tritonembed_perf.families.bert import bert
from tritonembed_perf.families.encoders import bert_like
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.roberta import xlm_roberta
from tritonembed_perf.families.sentence import write_model
from tritonembed_perf.families.writing import ModelParts

FAMILY = "Own tokenizer.json"
AS_IT_IS = "PreTrainedTokenizerFast"


def _write(folder: Path, model: ModelParts, tokenizer_class: str) -> None:
    model.tokenizer_config["tokenizer_class"] = tokenizer_class
    write_model(folder, model)


def _bert_of_a_domain() -> ModelParts:
    """Words lose their apostrophes, and every digit is a token."""
    model = bert()
    own = model.tokenizer
    own.normalizer = normalizers.Sequence([normalizers.Replace(Regex("['’]"), ""), own.normalizer])
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), own.pre_tokenizer])
    return model


@case(FAMILY, reference=lambda folder: _write(folder, _bert_of_a_domain(), AS_IT_IS))
def bert_own_rules(folder: Path) -> None:
    _write(folder, _bert_of_a_domain(), "BertTokenizer")


def _lowercase_xlmr() -> ModelParts:
    model = xlm_roberta()
    model.tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    model.tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return model


@case(FAMILY, reference=lambda folder: _write(folder, _lowercase_xlmr(), AS_IT_IS))
def xlmr_own_rules(folder: Path) -> None:
    _write(folder, _lowercase_xlmr(), "XLMRobertaTokenizer")


def _wordpiece() -> ModelParts:
    model = bert_like("BertModel")
    model.tokenizer_config |= {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    return model


@case(FAMILY, reference=lambda folder: _write(folder, _wordpiece(), AS_IT_IS))
def roberta_class_wordpiece(folder: Path) -> None:
    """WordPiece under RobertaTokenizer, as in almanach/camembertv2-base."""
    _write(folder, _wordpiece(), "RobertaTokenizer")

"""Dense modules: all activations and type names, residuals, missing weights."""

from pathlib import Path
from typing import Any

from tritonembed_perf.families.bert import PROMPTS, WIDTH, bert, mean_modules
from tritonembed_perf.families.registry import case
from tritonembed_perf.families.sentence import Module, dense, normalize, pooling, transformer, write_sentence_files

FAMILY = "BERT, Dense"
ACTIVATION = "torch.nn.modules.activation"
IDENTITY = "torch.nn.modules.linear.Identity"

CUSTOM_CODE = '''\
from sentence_transformers.models import Dense as Base


class Dense(Base):
    """Twice what sentence-transformers' own gives, less a bit."""

    def forward(self, features):
        features = super().forward(features)
        features["sentence_embedding"] = features["sentence_embedding"] * 2 - 0.3
        return features
'''


def write_dense(folder: Path, *modules: Module, **sentence: Any) -> None:
    """Write BERT with mean pooling and the given modules."""
    bert().write(folder)
    write_sentence_files(folder, mean_modules(*modules), **sentence)


@case(FAMILY)
def labse(folder: Path) -> None:
    """LaBSE: CLS, Dense with tanh, normalised."""
    bert().write(folder)
    modules = [transformer(), pooling(WIDTH, "cls"), dense(WIDTH, WIDTH), normalize()]
    write_sentence_files(folder, modules)


@case(FAMILY)
def labse_bin(folder: Path) -> None:
    bert().write(folder, "bin")
    modules = [transformer(), pooling(WIDTH, "cls"), dense(WIDTH, WIDTH, form="bin"), normalize()]
    write_sentence_files(folder, modules)


@case(FAMILY)
def dense_narrow(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32), normalize(), prompts=PROMPTS)


@case(FAMILY)
def dense_wide(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 96, IDENTITY), normalize())


@case(FAMILY)
def dense_no_bias(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, IDENTITY, bias=False), normalize())


@case(FAMILY)
def dense_not_normalized(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32))


@case(FAMILY)
def dense_two_norm(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 128, IDENTITY), dense(128, 48, seed=200), normalize())


@case(FAMILY)
def dense_two_normalize(folder: Path) -> None:
    """Vectors are normalised between two Dense modules and at the end."""
    write_dense(folder, dense(WIDTH, 128), normalize(), dense(128, 48, seed=200), normalize())


@case(FAMILY)
def norm_dense(folder: Path) -> None:
    write_dense(folder, normalize(), dense(WIDTH, 32))


@case(FAMILY)
def dense_relu(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, f"{ACTIVATION}.ReLU"), normalize())


@case(FAMILY)
def dense_sigmoid(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, f"{ACTIVATION}.Sigmoid"), normalize())


@case(FAMILY)
def dense_silu(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, f"{ACTIVATION}.SiLU"), normalize())


@case(FAMILY)
def dense_gelu(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, f"{ACTIVATION}.GELU"), normalize())


@case(FAMILY)
def dense_leaky(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 96, f"{ACTIVATION}.LeakyReLU"), normalize())


@case(FAMILY)
def dense_elu(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, f"{ACTIVATION}.ELU"), normalize())


@case(FAMILY)
def dense_mish(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, f"{ACTIVATION}.Mish"), normalize())


@case(FAMILY)
def dense_softplus(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, f"{ACTIVATION}.Softplus"), normalize())


@case(FAMILY)
def dense_softmax(folder: Path) -> None:
    """An activation that does not work element by element."""
    write_dense(folder, dense(WIDTH, 32, f"{ACTIVATION}.Softmax"), normalize())


@case(FAMILY)
def dense_prelu(folder: Path) -> None:
    """An activation with a weight, which is torch's initial 0.25."""
    write_dense(folder, dense(WIDTH, 32, f"{ACTIVATION}.PReLU"), normalize())


@case(FAMILY)
def dense_short_path(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, "torch.nn.Tanh"), normalize())


@case(FAMILY)
def dense_not_a_module(folder: Path) -> None:
    """A function instead of a module: sentence-transformers refuses it."""
    write_dense(folder, dense(WIDTH, 32, "torch.tanh"), normalize())


@case(FAMILY)
def dense_transformers_act(folder: Path) -> None:
    """An activation outside torch: sentence-transformers uses Tanh instead."""
    write_dense(folder, dense(WIDTH, 32, "transformers.activations.NewGELUActivation"), normalize())


@case(FAMILY)
def dense_st_identity(folder: Path) -> None:
    """The identity of an old sentence-transformers, which is outside torch, too."""
    write_dense(folder, dense(WIDTH, 32, "sentence_transformers.util.Identity"), normalize())


@case(FAMILY)
def dense_noact(folder: Path) -> None:
    """No `activation_function`: the default is Tanh."""
    write_dense(folder, dense(WIDTH, 32, None), normalize())


@case(FAMILY)
def bert_st6_dense(folder: Path) -> None:
    more: dict[str, Any] = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    module = dense(WIDTH, 32, type="sentence_transformers.base.modules.dense.Dense", **more)
    write_dense(folder, module, normalize())


@case(FAMILY)
def dense_type_long(folder: Path) -> None:
    """A type name that vLLM knows and sentence-transformers 6 does not."""
    write_dense(folder, dense(WIDTH, 32, type="sentence_transformers.models.Dense.Dense"), normalize())


@case(FAMILY)
def dense_othertype(folder: Path) -> None:
    """A class of the model's own, whose code may not be run."""
    write_dense(folder, dense(WIDTH, 32, type="custom_st.Dense"), normalize())
    (folder / "custom_st.py").write_text(CUSTOM_CODE)


@case(FAMILY, trusted=True)
def dense_othertype_trusted(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, type="custom_st.Dense"), normalize())
    (folder / "custom_st.py").write_text(CUSTOM_CODE)


@case(FAMILY)
def dense_same_othertype(folder: Path) -> None:
    """A class of the model's own, with vectors as wide as the transformer's."""
    write_dense(folder, dense(WIDTH, WIDTH, type="custom_st.Dense"), normalize())
    (folder / "custom_st.py").write_text(CUSTOM_CODE)


@case(FAMILY)
def bert_st6_residual(folder: Path) -> None:
    module = dense(WIDTH, WIDTH, type="sentence_transformers.base.modules.dense.Dense", use_residual=True)
    write_dense(folder, module, normalize())


@case(FAMILY)
def dense_residual_projected(folder: Path) -> None:
    """Input and output differ in width, so the residual has a matrix."""
    write_dense(folder, dense(WIDTH, 32, use_residual=True), normalize())


@case(FAMILY)
def dense_other_output(folder: Path) -> None:
    """The result has a name that no module reads, so the vector does not change."""
    write_dense(folder, dense(WIDTH, 32, module_output_name="other"), normalize())


@case(FAMILY)
def dense_via_other_name(folder: Path) -> None:
    """The first Dense writes under another name, from which the second reads."""
    first = dense(WIDTH, 96, module_output_name="between")
    second = dense(96, 32, seed=200, module_input_name="between", module_output_name="sentence_embedding")
    write_dense(folder, first, second, normalize())


@case(FAMILY)
def dense_token_embeddings(folder: Path) -> None:
    """Dense is applied to every token, before the pooling."""
    bert().write(folder)
    per_token = dense(WIDTH, 32, module_input_name="token_embeddings")
    write_sentence_files(folder, [transformer(), per_token, pooling(32, "mean"), normalize()])


@case(FAMILY)
def dense_unknown_key(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, made_up=1), normalize())


@case(FAMILY)
def dense_noweights(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32, form="none"), normalize())


@case(FAMILY)
def dense_nofolder(folder: Path) -> None:
    write_dense(folder, dense(WIDTH, 32), normalize())
    for file in (folder / "2_Dense").iterdir():
        file.unlink()
    (folder / "2_Dense").rmdir()


@case(FAMILY)
def dense_wrong_shape(folder: Path) -> None:
    """config.json has 48 outputs, the weights have 32."""
    from tritonembed_perf.families.writing import edit_json

    write_dense(folder, dense(WIDTH, 32), normalize())
    edit_json(folder / "2_Dense" / "config.json", out_features=48)

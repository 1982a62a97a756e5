from typing import get_args

import numpy as np
import pytest

from tritonembed_protocol.types import (
    DEFAULT_OUTPUT_TYPE,
    OUTPUT_TYPES,
    PRIORITY_LEVELS,
    EmbeddingType,
    Priority,
    output_type,
)


def test_every_name_has_a_row_and_every_row_a_name():
    assert tuple(OUTPUT_TYPES) == get_args(EmbeddingType)
    assert tuple(PRIORITY_LEVELS) == get_args(Priority)
    assert OUTPUT_TYPES[DEFAULT_OUTPUT_TYPE].dtype == np.float32


@pytest.mark.parametrize("kind", ["double", "FLOAT", None, ["float"]])
def test_an_unknown_output_type_is_refused_naming_the_known_ones(kind):
    with pytest.raises(ValueError, match="embedding_type must be one of float, float16, int8"):
        output_type(kind)


@pytest.mark.parametrize(("dimensions", "bytes_per_vector"), [(1, 1), (8, 1), (9, 2), (384, 48)])
def test_packed_types_have_a_byte_for_eight_dimensions(dimensions, bytes_per_vector):
    assert output_type("ubinary").columns(dimensions) == bytes_per_vector
    assert output_type("int8").columns(dimensions) == dimensions

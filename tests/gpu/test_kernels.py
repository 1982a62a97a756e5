"""The kernels on a GPU."""

import pytest
import torch
from tests.kernel_cases import all_cases

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_kernel_gives_what_its_reference_gives(dtype: torch.dtype) -> None:
    with torch.inference_mode():
        all_cases("cuda", [dtype])

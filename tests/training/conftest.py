import pytest
from accelerate import Accelerator


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)

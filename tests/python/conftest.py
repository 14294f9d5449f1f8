# SPDX-License-Identifier: MIT
import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))

import flash_mla

SEED = int(os.environ.get("FLASH_MLA_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))


def pytest_configure(config):
    if os.environ.get("FLASH_MLA_TEST_GPU") and not torch.cuda.is_available():
        pytest.exit("FLASH_MLA_TEST_GPU is set, but PyTorch sees no GPU", returncode=1)


def pytest_report_header(config):
    names = ", ".join(f"{b['name']} ({b['variant']})" for b in flash_mla.backends() if b["available"])
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "the CPU"
    return [
        f"flash_mla {flash_mla.__version__} from {os.path.dirname(flash_mla.__file__)} on {device}; backends: {names}",
        f"inputs of the accuracy bars: FLASH_MLA_TEST_SEED={SEED} repeats them",
    ]


@pytest.fixture(scope="session")
def device():
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def own_seed(request):
    """The same inputs in every run, whichever tests run before."""
    torch.manual_seed(sum(map(ord, request.node.name)))


@pytest.fixture
def fresh_inputs(own_seed):
    """Other random inputs in every run."""
    torch.manual_seed(torch.initial_seed() + SEED)
    print(f"FLASH_MLA_TEST_SEED={SEED}")

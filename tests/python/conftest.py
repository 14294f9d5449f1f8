# SPDX-License-Identifier: MIT
import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))

import flash_mla


def pytest_configure(config):
    if os.environ.get("FLASH_MLA_TEST_GPU") and not torch.cuda.is_available():
        pytest.exit("FLASH_MLA_TEST_GPU is set, but PyTorch sees no GPU", returncode=1)


def pytest_report_header(config):
    names = ", ".join(f"{b['name']} ({b['variant']})" for b in flash_mla.backends() if b["available"])
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "the CPU"
    return (
        f"flash_mla {flash_mla.__version__} from {os.path.dirname(flash_mla.__file__)} on {device}; backends: {names}"
    )


@pytest.fixture(scope="session")
def device():
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def fresh_seed(request):
    torch.manual_seed(sum(map(ord, request.node.name)))

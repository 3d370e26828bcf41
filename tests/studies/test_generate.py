"""Generation on a tiny model: its tokens against the model's own functions, and its counts."""

import json
from pathlib import Path

import numpy as np
import pytest
import tvm
from tiny_files import write_tiny_model

import sparqle_tvm
from sparqle_tvm.cli import main
from sparqle_tvm.errors import InvalidArgumentError, TextError
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.results.generation import Generation
from sparqle_tvm.studies.generate import _Drawing, generate

PROMPTS = ("the quick brown fox", "a dog")
TOKENS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("generate"))


@pytest.fixture(scope="module")
def together(model) -> Generation:
    return generate(PROMPTS, TOKENS, model, attention="float", progress=False)


def greedy(model: Path, prompt: str, count: int) -> list[int]:
    """The likeliest tokens by whole prefills of the plain int8 form, without a cache."""
    imported = from_gguf(model, progress=False)
    compiled = sparqle_tvm.compile(imported.mod, split=False)
    ids = imported.tokenizer.encode(prompt)
    made: list[int] = []
    for _ in range(count):
        tensor = tvm.runtime.tensor(np.array([ids + made], np.int32))
        logits = compiled["head"](compiled["hidden"](tensor)).numpy()
        made.append(int(logits[0, -1].argmax()))
    return made


def test_tokens_are_those_of_the_int8_model_whatever_goes_beside(model, together):
    for prompt, found in zip(PROMPTS, together.texts, strict=True):
        assert list(found.tokens) == greedy(model, prompt, TOKENS)
        assert found.ended == "tokens"
    assert together.texts[0].prompt_tokens == len(PROMPTS[0]) - 1  # "th" is one


def test_steps_are_the_prompts_and_then_a_token_of_each(together):
    prefills, decodes = (together.of_phase(phase) for phase in ("prefill", "decode"))
    assert [step.rows for step in prefills] == [len(PROMPTS[0]) - 1, len(PROMPTS[1])]
    assert [(step.rows, step.sequences) for step in decodes] == [(2, 2)] * (TOKENS - 1)
    assert [step.past for step in decodes] == [18, 19, 20]
    assert together.tokens("decode") == 2 * (TOKENS - 1)
    for scheme in ("dense", "sparqle"):
        cycles = sum(step.cycles[scheme] for step in decodes)
        expected = 6 / (cycles / (together.accelerator.clock_ghz * 1e9))
        assert together.tokens_per_second("decode", scheme) == pytest.approx(expected)
        joules = sum(step.joules[scheme] for step in decodes)
        assert together.joules_per_token("decode", scheme) == pytest.approx(joules / 6)
    assert 0 < together.msb_sparsity("decode") < 1


def test_a_batch_reads_its_weights_once(model, together):
    alone = [generate([p], TOKENS, model, attention="float", progress=False) for p in PROMPTS]
    assert [one.texts[0].tokens for one in alone] == [t.tokens for t in together.texts]
    batched = together.of_phase("decode")[0].cycles["dense"]
    assert batched < sum(one.of_phase("decode")[0].cycles["dense"] for one in alone)


def test_draws_are_those_of_the_seed():
    rng = np.random.default_rng
    logits = np.array([0.0, 3.0, 2.0, -9.0], np.float32)
    assert _Drawing(0.0, 0)(logits, rng(0)) == 1
    drawn = [_Drawing(1.0, 2)(logits, rng(seed)) for seed in range(300)]
    assert set(drawn) == {1, 2}
    # p(1) = e / (1 + e) = 0.731; five standard errors are 0.128.
    assert abs(drawn.count(1) / 300 - 0.731) < 0.128
    assert drawn == [_Drawing(1.0, 2)(logits, rng(seed)) for seed in range(300)]
    assert len({_Drawing(50.0, 0)(logits, rng(seed)) for seed in range(100)}) == 4


def test_a_sequence_ends_where_the_context_does(model):
    found = generate(["d" * 126], 9, model, engine="analytical", progress=False)
    assert found.texts[0].ended in ("context", "end")
    assert len(found.texts[0].tokens) <= 3
    with pytest.raises(TextError, match="context is 128"):
        generate(["d" * 128], 1, model, progress=False)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompt"),
        (["a", "  "], {}, "prompt 2 is empty"),
        (["a"], {"tokens": 0}, "at least 1"),
        (["a"], {"temperature": -1.0}, "temperature"),
        (["a"], {"temperature": float("nan")}, "temperature"),
        (["a"], {"top_k": -1}, "top_k"),
        (["a"], {"attention": "float", "kv": "int4"}, "not in float"),
    ],
)
def test_what_cannot_be_is_refused(prompts, options, message, model):
    given = {"tokens": 2, "model": model, "progress": False, **options}
    with pytest.raises(InvalidArgumentError if message != "prompt 2 is empty" else TextError) as e:
        generate(prompts, **given)
    assert message in str(e.value)


def test_on_the_command_line(model, tmp_path, capsys):
    batch = tmp_path / "prompts.txt"
    batch.write_text("the cat\n\nsome dogs\n")
    given = ["generate", "--model", str(model), "--engine", "analytical", "--tokens", "2"]
    assert main([*given, "--batch", str(batch), "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "[1] the cat" in out and "[2] some dogs" in out and "tokens/s" in out
    data = json.loads((tmp_path / "out.json").read_text())
    assert [len(text["tokens"]) for text in data["texts"]] == [2, 2] and data["version"] == 1
    batch.write_text("\n")
    assert main([*given, "--batch", str(batch)]) == 2
    assert main(given) == 2
    assert "no prompt" in capsys.readouterr().err

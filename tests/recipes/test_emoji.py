"""The emoji recipe, its judge and its scores, on a small table of known pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato import modelfolder
from sfumato.cli import run
from sfumato.conditioners import Text
from sfumato.data import Emoji
from sfumato.data.emoji_words import caption
from sfumato.errors import UserError
from sfumato.evaluate import ContrastiveJudge, JudgeAligner
from sfumato.evaluate.emoji import emoji_scores
from sfumato.pipeline import Pipeline
from sfumato.recipes import load_recipe, prepare
from sfumato.recipes.attributes import Looks
from sfumato.recipes.contrastive import Lessons, teach_words, train_contrastive
from tests.data.emoji_table import SIZE, table

SMALL = {"width": 8, "fine": 8, "embedding": 16, "text_width": 16, "buckets": 256}
LOOKS = Looks(epochs=40, batch=48, rate=4e-3, decay=0.0, shift=0)
LESSONS = Lessons(steps=100, batch=48, rate=4e-3, decay=0.0, turn=0, scale=0, shift=0, cut=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Emoji:
    return Emoji(path=str(table(tmp_path_factory.mktemp("emoji"))), size=SIZE, hold=2, shift=1)


@pytest.fixture(scope="module")
def judge(data: Emoji) -> ContrastiveJudge:
    return train_contrastive(data, lessons=LESSONS, looks=LOOKS, device="cpu", **SMALL)


def test_the_judge_learns_designs_and_names_it_has_met_apart(data: Emoji, judge: ContrastiveJudge) -> None:
    train = data.split("train").indices
    batch = data.fetch(train)
    told = [a == data.rows[i].style.replace("-", " ") for a, i in zip(judge.values(batch.media, "style"), train)]
    assert np.mean(told) >= 0.9
    known = data.part("known")
    names = sorted({row.name for row in data.rows if not row.test})
    lists = [
        [caption(data.rows[i]), *(f"{n}, {_design(data, i)}" for n in names if n != data.rows[i].name)] for i in known
    ]
    found = JudgeAligner(judge).first(data.fetch(known).media, lists)
    assert float(found.float().mean()) >= 0.5  # of ten names; 0.1 is chance


def _design(data: Emoji, i: int) -> str:
    return f"{data.rows[i].style.replace('-', ' ')} emoji"


def test_training_a_judge_is_a_function_of_its_arguments_and_spares_the_held_out(data: Emoji) -> None:
    state = torch.random.get_rng_state()
    first, second = (
        train_contrastive(
            data, lessons=Lessons(steps=2, batch=8), looks=Looks(epochs=1, batch=32), device="cpu", **SMALL
        )
        for _ in range(2)
    )
    assert first.weights_sha256 == second.weights_sha256
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.trained["items"] == len(data) - int(data.held_out_mask().sum())
    assert first.classes[:2] == ("style: noto", "style: noto blob") and first.classes[-1] == "skin tone: dark"


@dataclass
class Perfect:
    """A pipeline that answers with the real pictures, whatever the guidance."""

    data: Emoji
    sampling: Any = field(default_factory=lambda: SimpleNamespace(guidance=None, steps=1))

    def plan(self, prompts: list[str], **_: Any) -> list[str]:
        return prompts

    def run(self, plan: list[str], batch: int) -> Iterator[Tensor]:
        index = {caption(row): i for i, row in enumerate(self.data.rows)}
        for start in range(0, len(plan), batch):
            yield self.data.fetch([index[p] for p in plan[start : start + batch]]).media


def test_the_real_pictures_score_what_real_pictures_score(data: Emoji, judge: ContrastiveJudge) -> None:
    perfect: Any = Perfect(data)
    found = emoji_scores(perfect, data, judge, among=8, seen=10, curve=4, scales=(1.0, 3.0), batch=7).metrics
    for name in (
        "retrieval_known",
        "retrieval_new",
        "retrieval_counted",
        "style_accuracy",
        "accuracy_at_1",
        "near_copies",
    ):
        assert found[name].value == pytest.approx(found[name].real, abs=1e-6)
    assert found["of_real_counted"].value == 1 == found["of_real_counted"].interval[1]  # type: ignore[index]
    assert found["variety_at_3"].value == pytest.approx(0, abs=1e-5)
    assert found["near_copies_seen"].value == 1  # the training pictures themselves
    assert found["kid"].value < 0  # of a set and itself the unbiased estimate is below 0


def test_nothing_held_out_is_an_error(data: Emoji, judge: ContrastiveJudge) -> None:
    none: Any = Perfect(Emoji(path=data.path, size=SIZE, hold=0))
    with pytest.raises(UserError, match="nothing is held out"):
        emoji_scores(none, none.data, judge)


def _recipe(data: Emoji, **more: str) -> Any:
    asked = {"data": data.path, "size": "xs", "data.size": str(SIZE), "samples": "32", **more}
    return load_recipe("emoji", {k: v for k, v in asked.items() if k != "data.size"}).override("data.size", SIZE)


def test_the_recipe_reads_any_table_as_emoji_and_refuses_other_data(data: Emoji) -> None:
    made = _recipe(data)
    assert made.data.cls is Emoji and made.train.samples == 32
    model = prepare(made).task.model
    assert model.conditioner is not None and model.conditioner.columns == ("caption",)
    with pytest.raises(UserError, match="data=digits is no table of emoji"):
        load_recipe("emoji", {"data": "digits"})
    assert made.data.swap == 0.5 and load_recipe("emoji", {"data": "{type: emoji, path: X, swap: 0}"}).data.swap == 0
    changed = load_recipe("emoji", {"data": data.path, "data.swap": "0.1"}).data  # which no other data have
    assert changed.cls is Emoji and changed.swap == 0.1
    with pytest.raises(UserError, match=r"there is no setting 'data\.swop'; did you mean 'data\.swap'"):
        load_recipe("emoji", {"data": data.path, "data.swop": "0.1"})


@pytest.fixture(scope="module")
def folder(data: Emoji, judge: ContrastiveJudge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder such as the one that ships, of an untrained model whose weights do something."""
    made = prepare(_recipe(data))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.task.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    whole = tmp_path_factory.mktemp("models") / "whole"
    recipe = made.recipe
    Pipeline(made.task.model, made.spec, recipe.sampling, trained={"run": "tiny"}).save_pretrained(whole)
    small = modelfolder.save_compact(whole, whole.parent / "tiny", trained={"styles": list(data.styles)})
    judge.save(small / "judge", compact=True)
    return small


def _said(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> Any:
    assert run([*words, "--device", "cpu", "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_best_of_keeps_the_candidates_that_fit_best(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = ["boat, noto emoji", "cat, fluent emoji"]
    found = _said(capsys, ["sample", str(folder), *prompts, "best_of=4", "n=2", "steps=2", "seed=5"])
    pipeline = Pipeline.load(folder)
    judge = JudgeAligner(ContrastiveJudge.load(folder / "judge"))  # type: ignore[arg-type]
    expected = []
    for k, prompt in enumerate(prompts):
        made = pipeline(prompt, n=8, seed=5 + 8 * k, num_inference_steps=2, output_type="pt").media
        best = torch.sort(judge.fit(made, [prompt] * 8), descending=True, stable=True).indices[:2]
        expected += [5 + 8 * k + int(i) for i in best]
    assert [int(Path(file).name[:6]) for file in found["files"]] == expected
    assert all(Path(file).is_file() for file in found["files"]) and found["settings"]["best_of"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["best_of=1"], "best_of=1: draws several candidates for each sample; set it to 2 or more"),
        (["judge=somewhere"], "best_of= is not given; add best_of=8"),
        (["best_of=2", "judge=somewhere"], "judge=somewhere: there is no judge in this folder"),
    ],
)
def test_mistakes_of_best_of(folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sample", str(folder), "boat, noto emoji", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_design_and_a_model_without_judge(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sample", str(folder), "boat, crayon emoji"]) == 2
    assert "asks for the design 'crayon', which this model does not know" in capsys.readouterr().err
    assert run(["sample", str(folder.parent / "whole"), "boat", "best_of=2"]) == 2
    assert "this model has none beside it; give judge=FOLDER, or judge=clip:FOLDER" in capsys.readouterr().err
    assert run(["eval", str(folder.parent / "whole"), "metrics=alignment", "data=x.npz"]) == 2
    assert "metrics=alignment needs a judge of words; give judge=FOLDER or judge=clip:FOLDER" in capsys.readouterr().err


def test_eval_of_a_model_that_ships_reports_what_emoji_scores_finds(
    folder: Path, data: Emoji, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"data={data.path}",
        f"data.size={SIZE}",
        "data.hold=2",
        "among=8",
        "seen=5",
        "curve=2",
        "steps=2",
        "batch=16",
    ]
    found = _said(capsys, ["eval", str(folder), *words])
    judge: Any = ContrastiveJudge.load(folder / "judge")
    asked = Emoji(path=data.path, size=SIZE, hold=2)
    scores = emoji_scores(Pipeline.load(folder), asked, judge, among=8, seen=5, curve=2, steps=2, batch=16)
    assert found["metrics"].keys() == scores.metrics.keys()
    for name, score in scores.metrics.items():
        assert found["metrics"][name]["value"] == pytest.approx(score.value)
        assert found["metrics"][name]["real"] == pytest.approx(score.real)
    assert found["features"]["sha256"] == judge.weights_sha256 and found["n"] == scores.n


def test_models_are_listed_and_a_missing_one_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sfumato.commands import models

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "_SHIPPED", folder.parent)
    monkeypatch.setattr(modelfolder, "SHIPPED", folder.parent)
    assert run(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["from"], row["asked_by"]) for row in rows] == [
        ("tiny", "ships", "prompt"),
        ("whole", "ships", "prompt"),
    ]
    assert run(["show", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trained"]["styles"] == list(Pipeline.load(folder).trained["styles"])
    assert Pipeline.load("tiny").trained["styles"] == Pipeline.load(folder).trained["styles"]
    (folder.parent / "empty").mkdir()
    (folder.parent / "empty" / "README.md").write_text("# nothing\n")
    with pytest.raises(UserError, match="empty: the weights of this model are not in this installation"):
        Pipeline.load("empty")
    with pytest.raises(UserError, match="or one of the models that ship: empty, tiny, whole"):
        Pipeline.load("nothing")


SHIPPED = modelfolder.SHIPPED / "emoji" / "model.safetensors"


@pytest.mark.skipif(not SHIPPED.is_file(), reason="the emoji model's weights are not in this checkout")
def test_the_model_that_ships_is_small_and_its_designs_differ() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.parent.glob("*.*")) <= 12 << 20
    pipeline = Pipeline.load("emoji")
    judge: Any = ContrastiveJudge.load(SHIPPED.parent / "judge")
    assert judge.weights_sha256 == pipeline.trained["judge"]
    designs = [style.replace("-", " ") for style in pipeline.trained["styles"]]
    made = pipeline([f"red apple, {style} emoji" for style in designs], seed=0, output_type="pt").media
    assert judge.values(made, "style") == designs
    red = made.float()
    assert np.all((red[:, 0] - red[:, 2]).mean((1, 2)).numpy() > 10)  # redder than blue on the whole


def test_a_taught_text_encoder_is_a_teachers_and_another_shape_is_refused(data: Emoji) -> None:
    lessons = Lessons(steps=2, batch=8, seed=1)
    info = data.info
    taught = Text(info, width=16, depth=1, heads=4, length=96, buckets=64)
    teach_words(taught, data, lessons=lessons, device="cpu")
    teacher = train_contrastive(
        data, lessons=lessons, looks=None, device="cpu", text_width=16, depth=1, length=96, buckets=64
    )
    ours, theirs = taught.state_dict(), teacher.words.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    for settings in ({"heads": 2, "ngrams": 8}, {"heads": 4, "ngrams": 3}):
        with pytest.raises(UserError, match="set heads=4 and ngrams=8"):
            teach_words(Text(info, width=16, depth=1, buckets=64, **settings), data, lessons=lessons, device="cpu")

"""The baselines against plain loops in float64: which views and keys each compares, and where no gradient may flow."""

import math

import cv2
import numpy as np
import pytest
import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.methods import METHODS, Method, MomentumMethod, StepInfo
from cyclecontrast.models.backbone import Backbone, make_backbone
from cyclecontrast.models.checkpoint import save_backbone
from cyclecontrast.models.encoder import Projections
from tests.unit.loss.test_baseline_losses import loop_multi_positive, loop_nt_xent
from tests.unit.loss.test_losses import dot, loop_nce, unit
from tests.unit.methods.make_methods import (
    DIM,
    FRAMES,
    INFO,
    NUM_VIDEOS,
    QUEUE,
    draw_batch,
    fill_queue,
    make_config,
    make_method,
    make_trainer,
    with_features,
)

NUM_VIEWS = {"vince": 8, "seco": 4}


@pytest.mark.parametrize("mask", [False, True])
def test_vince_contrasts_all_frames_with_all_keys(mask):
    """Four queries of a video meet its four keys; negatives are the others' keys and the queue's, masked or not."""
    method = make_method("vince", mask_own_video=mask)
    fill_queue(method.intra_queue)
    queue_keys, queue_video = method.intra_queue.keys.clone(), method.intra_queue.video.clone()
    batch, queries, keys = with_features(method, 8)
    query = torch.cat([queries[i].intra for i in (0, 2, 4, 6)]).detach().double()
    new, video = torch.cat([keys[i].intra for i in (1, 3, 5, 7)]), torch.arange(NUM_VIDEOS).repeat(4)
    everything, of = torch.cat((queue_keys, new)).double(), torch.cat((queue_video, video))
    positives = (video[:, None] == of) & (torch.arange(len(of)) >= QUEUE)
    ignore = (video[:, None] == of) & mask
    assert (ignore & ~positives).any() == mask, "the queue has older keys of the videos"
    expected = loop_multi_positive(query, everything, positives, 0.2, ignore)
    assert method(batch, INFO).total.item() == pytest.approx(expected.item(), rel=1e-4)


def test_vince_contrasts_the_queries_of_a_batch():
    """The self-batch term adds the contrast of the queries among themselves, at its own temperature."""
    method = make_method("vince", self_batch=True, self_temperature=0.4)
    batch, queries, _ = with_features(method, 8)
    query = torch.cat([queries[i].intra for i in (0, 2, 4, 6)]).detach().double()
    video = torch.arange(NUM_VIDEOS).repeat(4)
    expected = loop_multi_positive(query, query, video == video[:, None], 0.4, None)
    losses = method(batch, INFO)
    assert losses.terms["self_batch"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses.total.item() == pytest.approx(losses.intra.item() + expected.item(), rel=1e-4)


def test_seco_is_the_sum_of_three():
    """Three positives each against the queue, the own frame against each other frame, and the order, summed."""
    method = make_method("seco")
    fill_queue(method.intra_queue)
    queue_keys, queue_video = method.intra_queue.keys.double(), method.intra_queue.video.clone()
    batch, queries, keys = with_features(method, 4)
    query = queries[0]
    inter = [
        loop_nce(query.intra[i].detach().double(), keys[view].intra[i].double(), queue_keys, 0.2, queue_video == i)
        for view in (1, 2, 3)
        for i in range(NUM_VIDEOS)
    ]
    intra = []
    for view in (2, 3):
        rows = [i for i in range(NUM_VIDEOS) if FRAMES[i, 0] != FRAMES[i, view]]
        shares = []
        for i in rows:
            same, other = (
                torch.exp(dot(query.cycle[i].detach().double(), keys[v].cycle[i].double()) / 0.2) for v in (1, view)
            )
            shares.append(-torch.log(same / (same + other)))
        intra.append(sum(shares) / len(shares))
    vectors = torch.cat((query.cycle.detach(), keys[2].cycle, keys[3].cycle), dim=1)
    logits = method.head(vectors).detach().double()
    is_after = {0: 0, 1: 1, 2: 0, 4: 1, 5: 0}  # video 3 shows the query's frame again
    order = [-logits[i].log_softmax(0)[after] for i, after in is_after.items()]
    parts = [(sum(inter) / len(inter)).item(), (sum(intra) / 2).item(), (sum(order) / len(order)).item()]
    losses = method(batch, INFO)
    found = [losses.intra.item(), losses.terms["same_frame"].item(), losses.terms["order"].item()]
    assert found == pytest.approx(parts, rel=1e-4)
    assert losses.total.item() == pytest.approx(sum(parts), rel=1e-4)


@pytest.mark.parametrize("name", ["vince", "seco"])
def test_keys_of_the_step_are_not_negatives_of_their_video(name):
    """With nothing masked, a query ignores the keys that its video has in this step, and its older ones count."""
    method = make_method(name, mask_own_video=False, batch_keys=True)
    fill_queue(method.intra_queue)
    method.intra_queue.video[:NUM_VIDEOS] = torch.arange(NUM_VIDEOS)
    batch, _, _ = with_features(method, NUM_VIEWS[name])
    seen = []
    method.accuracy = lambda query, positive, keys, ignore: seen.append(ignore) or torch.zeros(())
    method(batch, INFO)
    (ignore,) = seen
    number = method.num_enqueued
    assert ignore.shape == (NUM_VIDEOS, QUEUE + number * NUM_VIDEOS)
    assert not ignore[:, :QUEUE].any()
    assert torch.equal(ignore[:, QUEUE:], torch.arange(NUM_VIDEOS)[:, None] == torch.arange(NUM_VIDEOS).repeat(number))


@pytest.mark.parametrize(("options", "num_views"), [({}, 2), ({"views": 4, "positives": "video"}, 4)])
def test_simclr_is_nt_xent_of_all_views(options, num_views):
    """All views come from the encoder, and there is neither a momentum encoder nor a queue."""
    method = make_method("simclr", **options)
    batch, queries, _ = with_features(method, num_views)
    expected = loop_nt_xent(0.2, *(view.intra.detach().double() for view in queries))
    assert method(batch, INFO).total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert method.num_queries == num_views
    assert not isinstance(method, MomentumMethod)


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_predictors_predict_the_other_view(name):
    """The loss is the mean of minus the cosine both ways, of a view's prediction and the other view's target."""
    method = make_method(name)
    batch, _, keys = with_features(method, 2)
    projections = [Projections(3 * unit(NUM_VIDEOS, DIM, i), unit(NUM_VIDEOS, DIM, i + 9)) for i in (1, 2)]
    given = iter(projections)
    method.project = lambda view: next(given)
    method.eval()
    targets = [keys[1], keys[0]] if name == "byol" else [p.features() for p in projections[::-1]]
    predictions = [method.head(projection.intra).detach().double() for projection in projections]
    cosines = [
        sum(dot(p, t) for p, t in zip(prediction, target.intra.detach().double(), strict=True)) / NUM_VIDEOS
        for prediction, target in zip(predictions, targets, strict=True)
    ]
    assert method(batch, INFO).total.item() == pytest.approx(-sum(cosines).item() / 2, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("mask", [False, True])
def test_nnclr_predicts_the_nearest_key_of_the_other_view(mask):
    """Each view's nearest key of the queue is contrasted with the predictions of the other view, both ways."""
    method = make_method("nnclr", mask_own_video=mask)
    fill_queue(method.intra_queue)
    queue, of = method.intra_queue.keys.double(), method.intra_queue.video
    batch = draw_batch()
    projections = [Projections(3 * unit(NUM_VIDEOS, DIM, i), unit(NUM_VIDEOS, DIM, i + 9)) for i in (1, 2)]
    projections[0].intra[2] = queue[of == 2][0].float()  # so that masking matters
    given = iter(projections)
    method.project = lambda view: next(given)
    method.eval()
    predictions = [method.head(projection.intra).detach().double() for projection in projections]
    expected = 0.0
    for view, prediction in zip(projections, predictions[::-1], strict=True):
        neighbors = []
        for video, vector in enumerate(view.features().intra.double()):
            allowed = [key for key, number in zip(queue, of, strict=True) if not mask or number != video]
            neighbors.append(max(allowed, key=lambda key: dot(key, vector)))
        for video, neighbor in enumerate(neighbors):
            logits = [dot(neighbor, other) / 0.2 for other in prediction]
            expected += math.log(sum(math.exp(logit) for logit in logits)) - logits[video]
    assert method(batch, INFO).total.item() == pytest.approx(float(expected) / (2 * NUM_VIDEOS), rel=1e-4)
    method.after_step(INFO)
    torch.testing.assert_close(method.intra_queue.keys[-NUM_VIDEOS:], projections[0].features().intra)
    assert method.intra_queue.video[-NUM_VIDEOS:].tolist() == batch.video.tolist()


def test_no_gradient_reaches_simsiams_targets():
    """The gradient reaches projections through the head alone: with the head's output fixed, there is none."""
    method, batch = make_method("simsiam"), draw_batch()
    fixed = unit(NUM_VIDEOS, DIM, 5).requires_grad_()
    method.head.forward = lambda projection: fixed
    method(batch, INFO).total.backward()
    assert fixed.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in method.encoder.parameters())


def test_diet_classifies_each_view_as_its_video():
    """The loss is the cross-entropy with the smoothed class of the video, whose numbers may have gaps."""
    method, batch = make_method("diet"), draw_batch()
    method.prepare(torch.tensor([1, 2, 5, 7, 8, 11, 40]))
    batch = batch._replace(video=torch.tensor([40, 1, 5, 5, 11, 2]))
    classes = [6, 0, 2, 2, 5, 1]
    method.eval()
    terms, hits = [], []
    for view in batch.views:
        vectors = method.encoder.backbone(method.encoder.backbone.normalize(view)).detach().double()
        for vector, own in zip(vectors, classes, strict=True):
            logits = [dot(vector, row) for row in method.head.weight.detach().double()]
            log_sum = math.log(sum(math.exp(logit) for logit in logits))
            wanted = [0.8 / 7 + 0.2 * (number == own) for number in range(7)]
            terms.append(-sum(w * (logit - log_sum) for w, logit in zip(wanted, logits, strict=True)))
            hits.append(max(range(7), key=lambda number: logits[number]) == own)
    losses = method(batch, INFO)
    assert losses.total.item() == pytest.approx(float(sum(terms)) / 12, rel=1e-5)
    assert losses.intra_accuracy.item() == pytest.approx(sum(hits) / 12)


def test_distillation_is_the_cosine_to_the_teachers_vectors():
    """The loss is minus the mean cosine of the head's output and the teacher's vector of the same view, centered."""
    method, batch = make_method("distill").eval(), draw_batch()
    center = 0.1 * torch.arange(method.teacher.dim, dtype=torch.double)
    method.center[:] = center
    teacher, backbone = method.teacher, method.encoder.backbone
    teacher.mean, teacher.std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    cosines, vectors = [], []
    for view in batch.views:
        pixels = view.permute(0, 2, 3, 1).double() / 255
        images = ((pixels - torch.tensor(teacher.mean)) / torch.tensor(teacher.std)).permute(0, 3, 1, 2)
        wanted = teacher(images.float()).detach().double() - center
        vectors.append(wanted + center)
        found = method.head(backbone(backbone.normalize(view))).detach().double()
        cosines += [dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5 for a, b in zip(found, wanted, strict=True)]
    losses = method(batch, INFO)
    assert losses.total.item() == pytest.approx(-float(sum(cosines)) / 12, rel=1e-5)
    method.after_step(StepInfo(5, 10))
    moved = 0.9 * center + 0.1 * torch.cat(vectors).mean(dim=0)
    assert torch.allclose(method.center.double(), moved, atol=1e-5)


def test_a_teacher_does_not_change():
    """Training moves no weight and no statistic of the teacher, and its state has neither; it stays in evaluation."""
    trainer = make_trainer("distill", freeze=1, init="random:resnet10-small-w8", image_size=16)
    method = trainer.method
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    for step in range(3):
        trainer.train_step(draw_batch(seed=step), StepInfo(step, 10))
    assert all(torch.equal(value, before[key]) for key, value in method.teacher.state_dict().items())
    assert not any(module.training for module in method.teacher.modules())
    assert [key for key in trainer.state_dict() if key.startswith("teacher")] == ["teacher/fingerprint"]
    assert len(trainer.state_dict()["teacher/fingerprint"]) == 8


def test_a_teacher_of_one_image_size_gets_views_of_that_size(tmp_path, monkeypatch):
    """A teacher that takes no views of the training's size gets them enlarged; others get the pixels as they are."""
    forward = Backbone.forward

    def strict(backbone, images):
        if backbone.name == "resnet10-small-w4":
            assert images.shape[-1] == 24, "this network takes 24 px only"
        return forward(backbone, images)

    monkeypatch.setattr(Backbone, "forward", strict)
    teacher = make_backbone("resnet10-small-w4", image_size=24)
    teacher.mean, teacher.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    save_backbone(teacher, tmp_path)
    method = make_method("distill", teacher=str(tmp_path / "backbone.safetensors"), image_size=16)
    (view, _), seen = draw_batch().views, []
    method._teach = lambda images: seen.append(images) or teacher.eval()(images)
    method.teach(view)
    assert method.teacher.image_size == 24
    small = [cv2.resize(image, (24, 24)) for image in view.permute(0, 2, 3, 1).float().numpy() / 255]
    assert np.allclose(seen[0].permute(0, 2, 3, 1).numpy(), np.stack(small), atol=1e-5)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_step_moves_what_it_should(name):
    """The gradient moves encoder and head, the momentum encoder follows, and every key of the method is enqueued."""
    trainer = make_trainer(name, momentum=0.75, cycle_start=0.0)
    method, weight = trainer.method, "backbone.network.layer1.0.conv1.weight"
    before = {key: value.clone() for key, value in method.state_dict().items()}
    batch = draw_batch(NUM_VIEWS.get(name, 2))
    trainer.train_step(batch, INFO)
    after = method.state_dict()
    assert not torch.equal(after[f"encoder.{weight}"], before[f"encoder.{weight}"])
    for key in before:
        if key.startswith("head.") and "running" not in key and "num_batches" not in key:
            assert not torch.equal(after[key], before[key]), key
    if isinstance(method, MomentumMethod):
        followed = 0.75 * before[f"momentum_encoder.{weight}"] + 0.25 * after[f"encoder.{weight}"]
        assert torch.allclose(after[f"momentum_encoder.{weight}"], followed, atol=1e-7)
        assert all(parameter.grad is None for parameter in method.momentum_encoder.parameters())
    for queue in ("intra_queue", "cycle_queue"):
        if f"{queue}.video" in after:
            pushed = method.num_enqueued * NUM_VIDEOS
            expected = [-1] * (QUEUE - pushed) + list(range(NUM_VIDEOS)) * method.num_enqueued
            assert after[f"{queue}.video"].tolist() == expected


@pytest.mark.parametrize("name", list(METHODS))
def test_computing_losses_changes_no_state(name):
    """Computing losses twice gives the same numbers and leaves weights and queues as they were."""
    method, batch = make_method(name).eval(), draw_batch(NUM_VIEWS.get(name, 2))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    first, second = (method(batch, INFO).total.item() for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_simsiams_predictor_keeps_its_rate():
    """The predictor trains at the full rate to the end while the encoder's falls; BYOL's falls with it."""
    for name, expected in (("simsiam", 0.1), ("byol", None)):
        trainer = make_trainer(name)
        trainer.train_step(draw_batch(), StepInfo(9, 10))
        of_projectors, of_backbone, of_head = (group["lr"] for group in trainer.optimizer.param_groups)
        assert of_projectors == of_backbone < 0.01
        assert of_head == (expected or of_backbone)


def draw_frames(method, num_frames, number=2000, **options):
    """Draw frames of extra views; returns the query's frame (number,) and those frames (number, num_views)."""
    draw, rng = METHODS[method].frames(make_config(method, **options))[1], np.random.default_rng(0)
    query = rng.integers(num_frames, size=number)
    return query, np.array([draw(rng, int(frame), num_frames) for frame in query])


@pytest.mark.parametrize(
    ("method", "options", "number"), [("vince", {}, 6), ("simclr", {"views": 5, "positives": "video"}, 3)]
)
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_further_frames_are_of_the_whole_video(method, options, number, num_frames):
    """Each of them is any frame equally often, whatever the query's."""
    query, frames = draw_frames(method, num_frames, **options)
    p = 1 / num_frames
    counts = np.bincount(frames.ravel(), minlength=num_frames)
    assert (frames.shape[1], len(counts)) == (number, num_frames)
    assert np.abs(counts - 2000 * number * p).max() <= 5 * (2000 * number * p * (1 - p)) ** 0.5
    assert abs((frames[:, 0] == query).sum() - 2000 * p) <= 5 * (2000 * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_seco_draws_two_frames_of_the_other_half(num_frames):
    """They are in order of time, on the other side of the middle; a video of one frame shows it again."""
    query, frames = draw_frames("seco", num_frames)
    half = num_frames // 2
    assert (frames[:, 0] <= frames[:, 1]).all()
    if half:
        assert ((frames < half) == (query >= half)[:, None]).all()
        assert set(frames.ravel().tolist()) == set(range(num_frames))
    else:
        assert not frames.any()


def test_the_query_frame_in_the_support_is_drawn_again():
    """k++ of cycle-only shows the query's frame."""
    query, frames = draw_frames("cycle-only", 5, query_frame_in_support=True)
    assert (frames == query[:, None]).all()


def test_every_method_says_what_it_is():
    """The registry, the option and the words for the report name the same methods."""
    names = PretrainConfig.model_fields["method"].annotation.__args__
    assert set(METHODS) == set(names)
    assert len({method.learns_from for method in METHODS.values()}) == len(METHODS)
    with pytest.raises(NotImplementedError):
        Method.forward(None, None, None)

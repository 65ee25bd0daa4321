"""Images that a model was made for, and others: each with what is said of it."""

import dataclasses
import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from mvl.cli import main
from mvl.config import DataConfig
from mvl.data.checks import CaseRecord
from mvl.data.domain import TrainingDomain, summarise, training_domain
from mvl.data.judgement import judge, judge_volumes
from mvl.data.preparation import Preparation
from mvl.data.tasks import TASKS
from mvl.errors import DataError
from mvl.experiment.inference import Predictor
from mvl.experiment.prediction import predict_file, predict_folder

MRI, CT = TASKS["Task04_Hippocampus"], TASKS["Task09_Spleen"]  # the window is -160 to 240 HU
SHAPE = (20, 24, 20)
PAD = DataConfig(grid=(24, 24, 24))
RESIZE = replace(PAD, fit="resize")
CROP = replace(PAD, fit="crop", spacing_mm=(1.0, 1.0, 1.0))


def mri(seed=0, shape=SHAPE):
    """Grey values as in a crop of a head, all above 0, with dark and bright tails that differ."""
    return 1000 + 200 * np.random.default_rng(seed).gamma(4, 1, shape).astype(np.float32)


def ct(seed=0, shape=SHAPE):
    """Air around a body of fat, soft tissue and bone, in Hounsfield units."""
    rng = np.random.default_rng(seed)
    image = np.full(shape, -1000, np.float32)
    body = tuple(slice(n // 5, n - n // 5) for n in shape)
    inside = rng.choice([-100, 40, 60, 700], p=[0.3, 0.3, 0.3, 0.1], size=image[body].shape)
    image[body] = inside + rng.normal(0, 10, inside.shape)
    return image


def scaled(*factors):
    return np.diag([*factors, 1.0])


ONE = scaled(1, 1, 1)
LABEL = np.zeros(SHAPE, np.uint8)
LABEL[8:12, 8:12, 8:10], LABEL[8:12, 8:12, 10:12] = 1, 2


def learned(images, task=MRI, affine=None, config=PAD, sides_dice=(0.9, 0.5)):
    """The domain of images that all have `LABEL`."""
    affine = ONE if affine is None else affine
    counts = {value: int((value == LABEL).sum()) for value in (0, 1, 2)}
    records = [
        CaseRecord(affine=affine, label_counts=counts, statistics=summarise(image, affine, task))
        for image in images
    ]
    return training_domain(records, task, config, sides_dice)


MRI_DOMAIN, CT_DOMAIN = learned(map(mri, range(4))), learned(map(ct, range(4)), CT)


def test_the_domain_is_the_training_cases_range():
    domain = MRI_DOMAIN
    assert domain.cases == 4
    assert domain.spacing_mm == ((1, 1),) * 3
    assert domain.extent_mm == ((20, 20), (24, 24), (20, 20))
    # 4 x 4 x 2 voxels of 1 mm a label, 0.032 ml.
    assert domain.volume_ml["foreground"] == (0.064, 0.064)
    assert domain.volume_ml["anterior"] == domain.volume_ml["posterior"] == (0.032, 0.032)
    assert domain.negative == ((0, 0),) and domain.flat == ((0, 0),)
    median = [np.median((i - i.mean()) / i.std()) for i in map(mri, range(4))]
    assert domain.quantiles[0][2] == pytest.approx((min(median), max(median)), abs=1e-3)


def test_a_cts_intensities_are_hounsfield_units():
    low, high = CT_DOMAIN.quantiles[0][0]
    assert low == high == -1000
    inside = [np.mean((i > -160) & (i < 240)) for i in map(ct, range(4))]
    assert CT_DOMAIN.flat[0] == pytest.approx((1 - max(inside), 1 - min(inside)), abs=1e-3)


def test_lengths_are_along_the_patients_axes():
    """An image stored as S, R, A, of 3 x 1 x 2 mm, is 1 x 2 x 3 mm along R, A and S."""
    affine = np.array([[0, 1, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]])
    domain = learned([mri()], affine=affine, sides_dice=(0.9, 0.9))
    assert domain.spacing_mm == ((1, 1), (2, 2), (3, 3))
    assert domain.extent_mm == ((24, 24), (40, 40), (60, 60))
    assert domain.volume_ml["foreground"] == (0.384, 0.384)  # 64 voxels of 6 mm3
    assert not domain.is_one_sided and MRI_DOMAIN.is_one_sided


DAMAGED = {"flat": ..., "spacing_mm": [[1, 1]], "extent_mm": [[2, 1]] * 3, "quantiles": [[[0, 1]]]}
DAMAGED |= {"volume_ml": 3, "sides_dice": [0.9], "turned_degrees": ["a", "b"], "new": 1}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_domain_comes_back_from_json_or_is_damaged(name):
    for domain in (MRI_DOMAIN, CT_DOMAIN):
        stored = json.loads(json.dumps(dataclasses.asdict(domain)))
        assert TrainingDomain.from_dict(stored) == domain
        stored[name] = DAMAGED[name]
        changed = {key: value for key, value in stored.items() if value is not ...}
        with pytest.raises(DataError, match="damaged"):
            TrainingDomain.from_dict(changed)


def doubled(image):
    return np.pad(image, [(n // 2, n // 2) for n in image.shape], mode="reflect")


#: name -> (the domain, an image, its affine, the configuration, what comes of it)
IMAGES = {
    "unseen case": (MRI_DOMAIN, mri(9), ONE, PAD, "passed"),
    "stored flipped": (MRI_DOMAIN, mri(9)[::-1, :, ::-1], scaled(-1, 1, -1), PAD, "passed"),
    "a tenth larger": (MRI_DOMAIN, mri(9), scaled(1.1, 1.1, 1), PAD, "passed"),
    "1.4 mm": (MRI_DOMAIN, mri(9), scaled(1.4, 1, 1), PAD, "warned"),
    "2 mm": (MRI_DOMAIN, mri(9), scaled(2, 2, 2), PAD, "refused"),
    "0.5 mm": (MRI_DOMAIN, mri(9), scaled(0.5, 0.5, 0.5), PAD, "refused"),
    "thick slices": (MRI_DOMAIN, mri(9), scaled(1, 1, 5), PAD, "refused"),
    "micrometres": (MRI_DOMAIN, mri(9), scaled(1000, 1000, 1000), PAD, "refused"),
    "twice the field of view": (MRI_DOMAIN, doubled(mri(9)), ONE, PAD, "refused"),
    "one edge 1.4 times": (MRI_DOMAIN, mri(9, (20, 34, 20)), ONE, PAD, "warned"),
    "half the field of view": (MRI_DOMAIN, mri(9)[5:15, 6:18, 5:15], ONE, PAD, "refused"),
    "one slice": (MRI_DOMAIN, mri(9)[:, :, 9:10], ONE, PAD, "refused"),
    # Resized, the field of view is the scale; in crops, it may be any.
    "resize: wider": (MRI_DOMAIN, mri(9), scaled(1.4, 1, 1), RESIZE, "warned"),
    "resize: twice the view": (MRI_DOMAIN, doubled(mri(9)), ONE, RESIZE, "refused"),
    "finer": (MRI_DOMAIN, mri(9, (40, 48, 40)), scaled(0.5, 0.5, 0.5), RESIZE, "warned"),
    "crop: twice the view": (MRI_DOMAIN, doubled(mri(9)), ONE, CROP, "passed"),
    "crop: 2 mm": (MRI_DOMAIN, mri(9), scaled(2, 2, 2), CROP, "warned"),
    "crop: micrometres": (MRI_DOMAIN, mri(9), scaled(1000, 1000, 1000), CROP, "refused"),
    # An MRI's units mean nothing, its distribution does.
    "another scale": (MRI_DOMAIN, 7 * mri(9), ONE, PAD, "passed"),
    "inverted": (MRI_DOMAIN, mri(9).max() - mri(9), ONE, PAD, "warned"),
    "negated": (MRI_DOMAIN, -mri(9), ONE, PAD, "refused"),
    "z-scores": (MRI_DOMAIN, (mri(9) - 1800) / 400, ONE, PAD, "warned"),
    "a CT for an MRI": (MRI_DOMAIN, ct(9), ONE, PAD, "refused"),
    "zeros": (MRI_DOMAIN, np.zeros(SHAPE, np.float32), ONE, PAD, "refused"),
    "constant": (MRI_DOMAIN, np.full(SHAPE, 7, np.float32), ONE, PAD, "refused"),
    "half is masked": (MRI_DOMAIN, mri(9) * (mri(9) > 1700), ONE, PAD, "warned"),
    # A CT has Hounsfield units.
    "CT, unseen case": (CT_DOMAIN, ct(9), ONE, PAD, "passed"),
    "CT, padded with -2000": (CT_DOMAIN, ct(9) - 1000 * (ct(9) == -1000), ONE, PAD, "passed"),
    "CT, offset lost": (CT_DOMAIN, ct(9) + 1024, ONE, PAD, "refused"),
    "CT, offset twice": (CT_DOMAIN, ct(9) - 1024, ONE, PAD, "refused"),
    "CT, slope lost": (CT_DOMAIN, ct(9) * 10, ONE, PAD, "refused"),
    "CT, slope twice": (CT_DOMAIN, ct(9) / 10, ONE, PAD, "refused"),
    "CT, 0 to 1": (CT_DOMAIN, (ct(9) + 1000) / 3000, ONE, PAD, "refused"),
    "CT, of 8 bits": (CT_DOMAIN, ct(9).clip(-160, 240) * 0.6375 + 102, ONE, PAD, "refused"),
    "CT, negated": (CT_DOMAIN, -ct(9), ONE, PAD, "refused"),
    "CT, an MRI for a CT": (CT_DOMAIN, mri(9), ONE, PAD, "refused"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_against_its_models_training_images(name):
    domain, image, affine, config, expected = IMAGES[name]
    findings = judge(domain, image, affine, CT if domain is CT_DOMAIN else MRI, config)
    assert expected == (
        "refused" if any(f.refused for f in findings) else "warned" if findings else "passed"
    )


def test_a_turned_image_is_warned_of():
    cosine, sine = np.cos(np.radians(30)), np.sin(np.radians(30))
    turned = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    findings = judge(MRI_DOMAIN, mri(9), turned, MRI, PAD)
    assert [finding.refused for finding in findings] == [False] and "30 degrees" in findings[0].text


def test_a_finding_names_both_values_and_its_remedy_works():
    """0.5 mm is refused; every second voxel of it has 1 mm, and passes."""
    fine = mri(9).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    (finding,) = judge(MRI_DOMAIN, fine, scaled(0.5, 0.5, 0.5), MRI, PAD)
    assert "0.5 x 0.5 x 0.5 mm" in finding.text and "1 x 1 x 1 mm" in finding.text
    assert not judge(MRI_DOMAIN, fine[::2, ::2, ::2], ONE, MRI, PAD)
    # A whole head is refused; the crop of it passes.
    head = np.pad(mri(9), 40, mode="reflect")
    (finding,) = judge(MRI_DOMAIN, head, ONE, MRI, PAD)
    assert "100 x 104 x 100 mm" in finding.text and "20 x 24 x 20 mm" in finding.text
    assert not judge(MRI_DOMAIN, head[40:60, 40:64, 40:60], ONE, MRI, PAD)


def test_each_channel_is_judged_on_its_scale():
    task, first = replace(CT, channels=("CT", "T1")), replace(PAD, channels="first")
    both = np.stack([ct(), mri()], -1)
    domain = learned([both], task)
    assert not judge(domain, both, ONE, task, PAD)
    findings = judge(domain, both[..., ::-1], ONE, task, PAD)
    assert {finding.text[:10] for finding in findings} == {"channel 0:", "channel 1:"}
    assert not judge(learned([both], task, config=first), both, ONE, task, first)


def test_volumes_are_compared_with_the_training_cases():
    """0.064 ml in training: a quarter more passes."""
    assert not judge_volumes(MRI_DOMAIN, {"foreground": 0.079})
    for volume in (0.04, 0.09):
        (warning,) = judge_volumes(MRI_DOMAIN, {"foreground": volume})
        assert "0.064" in warning
    assert judge_volumes(None, {"foreground": 0.0}) == ["foreground: no voxel was segmented"]


class Threshold(torch.nn.Linear):
    """Foreground is what is brighter than so many standard deviations; it has some parameter."""

    def __init__(self, level):
        super().__init__(1, 1)
        self.level = level

    def forward(self, volume):
        return volume - self.level


def saved(path, image, affine=ONE):
    nibabel.save(nibabel.Nifti1Image(image, affine), path)
    return path


def test_predict_refuses_warns_or_says_one_line(tmp_path, capsys):
    known, out = (Preparation(MRI, PAD), MRI_DOMAIN), tmp_path / "out.nii.gz"
    # The 64 brightest of 9,600 voxels: as much as in training.
    image = mri(9)
    level = ((image - image.mean()) / image.std()).ravel()
    model = Predictor(Threshold(np.sort(level)[-65:-63].mean()), *known)
    predict_file(saved(tmp_path / "a.nii", image), out, model)
    said = capsys.readouterr()
    assert said.err == "" and len(said.out.splitlines()) == 2
    assert "like the 4 training images" in said.out and "mirrored left to right 0.500" in said.out
    assert "foreground: 64 voxels, 0.064 ml" in said.out

    wide = saved(tmp_path / "b.nii", image, scaled(1.4, 1, 1))
    predict_file(wide, out, model)
    assert "warning: " in (error := capsys.readouterr().err) and "1.4 x 1 x 1 mm" in error

    out.unlink()
    coarse = saved(tmp_path / "c.nii", image, scaled(2, 2, 2))
    with pytest.raises(DataError, match=r"(?s)c.nii.*2 x 2 x 2 mm.*1 x 1 x 1 mm.*--anyway"):
        predict_file(coarse, out, model)
    assert not out.exists()
    predict_file(coarse, out, model, anyway=True)
    said = capsys.readouterr()
    assert "2 x 2 x 2 mm" in said.err and "64 voxels, 0.512 ml" in said.out and out.exists()

    predict_file(tmp_path / "a.nii", out, Predictor(Threshold(99), *known))
    said = capsys.readouterr()
    assert "foreground: 0 voxels, 0 ml" in said.out and "no voxel" in said.err

    predict_file(tmp_path / "a.nii", out, Predictor(model.model, known[0]))
    assert "not checked" in capsys.readouterr().out


def test_a_folders_refused_images_are_its_failures(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    saved(images / "a.nii", mri(9), scaled(2, 2, 2))
    saved(images / "b.nii", mri(9))
    predictor = Predictor(Threshold(2), Preparation(MRI, PAD), MRI_DOMAIN)
    out, failures = predict_folder(images, tmp_path / "out", predictor)
    assert list(failures) == [images / "a.nii"] and "2 x 2 x 2 mm" in failures[images / "a.nii"]
    assert [path.name for path in out.iterdir()] == ["b.nii.gz"]
    assert "b.nii: like the 4 training images" in capsys.readouterr().out
    _, failures = predict_folder(images, tmp_path / "out", predictor, anyway=True)
    assert not failures and len(list(out.iterdir())) == 2


@pytest.mark.parametrize(
    ("shape", "affine", "status", "said"),
    [((35, 50, 35), ONE, 0, "like the"), ((17, 25, 17), scaled(2, 2, 2), 1, "2 x 2 x 2 mm")],
)
def test_best_takes_a_crop_of_1_mm(tmp_path, capsys, shape, affine, status, said):
    image = np.random.default_rng(0).uniform(100, 900, shape).astype(np.float32)
    image = saved(tmp_path / "a.nii", image, affine)
    assert main(["predict", str(image), "-o", str(tmp_path / "o.nii")]) == status
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    assert (tmp_path / "o.nii").exists() == (status == 0)

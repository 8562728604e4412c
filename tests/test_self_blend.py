import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dfscan.faces.crop import crop_square_xyxy
from dfscan.faces.detect import FaceDetector
from dfscan.forgery import self_blend as forgery
from dfscan.forgery.self_blend import LANDMARKS, MIN_CHANGE, REGIONS, Blend, Region, self_blend
from tests.pictures import FACE_XYXY, astronaut

Pixels = NDArray[np.uint8]
Points = NDArray[np.float32]


@pytest.fixture(scope="module")
def portrait() -> tuple[Pixels, Points]:
    """Return the face at 1.75 times its box, 192 px, with the landmarks that the detector finds."""
    picture = astronaut()
    (face,) = FaceDetector(threshold=0.9, min_face_px=40, max_faces=1).detect(picture)
    x1, y1, x2, y2 = crop_square_xyxy(np.array(FACE_XYXY, np.float32), margin=1.75)
    return picture[y1:y2, x1:x2].copy(), face.landmarks - np.array([x1, y1], np.float32)


@pytest.fixture(scope="module")
def blends(portrait: tuple[Pixels, Points]) -> list[Blend]:
    return [self_blend(*portrait, np.random.default_rng(seed)) for seed in range(120)]


def difference(blend: Blend) -> NDArray[np.float64]:
    return np.asarray(np.abs(blend.fake.astype(np.float64) - blend.real).mean(axis=2), np.float64)


def sharpness(pixels: Pixels) -> float:
    """Return the energy of the second derivative, which a uniform change of colour hardly affects."""
    return float(cv2.Laplacian(pixels, cv2.CV_32F).std())


def place(template: NDArray[np.float64], matrix: NDArray[np.float64]) -> Points:
    return np.asarray(template[:, :2] @ matrix[:, :2].T + matrix[:, 2], np.float32)


def test_outputs_match_the_input_in_shape_and_type_and_the_input_is_unchanged(portrait: tuple[Pixels, Points]) -> None:
    pixels, landmarks = portrait
    before = pixels.copy()
    blend = self_blend(pixels, landmarks, np.random.default_rng(0))
    assert np.array_equal(pixels, before)
    for picture in (blend.real, blend.fake):
        assert picture.dtype == np.uint8
        assert picture.shape == pixels.shape
        assert not np.shares_memory(picture, pixels)
    assert not np.shares_memory(blend.real, blend.fake)
    assert blend.mask.dtype == np.float32
    assert blend.mask.shape == pixels.shape[:2]


def test_equal_seeds_give_equal_bytes_and_other_seeds_differ(portrait: tuple[Pixels, Points]) -> None:
    first, again, other = (self_blend(*portrait, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert (first.real.tobytes(), first.fake.tobytes()) == (again.real.tobytes(), again.fake.tobytes())
    assert (first.mask.tobytes(), first.region) == (again.mask.tobytes(), again.region)
    assert first.mask.tobytes() != other.mask.tobytes()


def test_every_fake_differs_visibly_within_its_mask_and_only_there(blends: list[Blend]) -> None:
    for blend in blends:
        changed = difference(blend)
        assert changed[blend.mask == 0].max() == 0
        assert changed[blend.mask >= blend.mask.max() / 2].mean() >= MIN_CHANGE
    strong = [difference(b)[b.mask >= b.mask.max() / 2].mean() for b in blends if b.mask.max() == 1]
    assert 10 < np.median(strong) < 40


def test_half_of_the_reals_are_unchanged_and_the_others_visibly_altered(
    blends: list[Blend], portrait: tuple[Pixels, Points]
) -> None:
    changes = np.array([cv2.absdiff(blend.real, portrait[0]).mean() for blend in blends])
    assert 0.35 < (changes == 0).mean() < 0.65
    assert np.median(changes[changes > 0]) > 4


def test_masks_peak_at_the_blend_ratio(blends: list[Blend]) -> None:
    peaks = np.array([blend.mask.max() for blend in blends])
    assert all(np.isclose(peak, (0.25, 0.5, 0.75, 1), atol=1e-6).any() for peak in peaks)
    assert 0.35 < np.isclose(peaks, 1).mean() < 0.65
    assert min(float(blend.mask.min()) for blend in blends) == 0


def test_regions_are_drawn_with_their_probabilities(portrait: tuple[Pixels, Points]) -> None:
    assert sum(forgery.REGION_PROBS.values()) == pytest.approx(1)
    assert set(forgery.REGION_PROBS) == set(REGIONS)
    small = cv2.resize(portrait[0], (48, 48), interpolation=cv2.INTER_AREA).astype(np.uint8)
    drawn = [self_blend(small, portrait[1] / np.float32(4), np.random.default_rng(seed)).region for seed in range(500)]
    for region, share in forgery.REGION_PROBS.items():
        assert drawn.count(region) / 500 == pytest.approx(share, abs=0.07)


def centre_and_size(region: Region, portrait: tuple[Pixels, Points]) -> tuple[NDArray[np.float64], float]:
    masks = [self_blend(*portrait, np.random.default_rng(seed), region=region).mask for seed in range(12)]
    mean = np.mean([mask / mask.max() for mask in masks], axis=0)
    y, x = np.mgrid[: mean.shape[0], : mean.shape[1]]
    return np.array([(x * mean).sum(), (y * mean).sum()]) / mean.sum(), float(mean.sum())


def test_masks_of_parts_are_at_the_parts_of_the_face(portrait: tuple[Pixels, Points]) -> None:
    landmarks = portrait[1].astype(np.float64)
    eyes_px = float(np.linalg.norm(landmarks[1] - landmarks[0]))
    where: dict[Region, NDArray[np.float64]] = {
        "eyes": landmarks[:2].mean(axis=0),
        "nose": landmarks[2],
        "mouth": landmarks[3:].mean(axis=0),
    }
    sizes = {region: centre_and_size(region, portrait)[1] for region in REGIONS}
    for part, place_px in where.items():
        assert np.linalg.norm(centre_and_size(part, portrait)[0] - place_px) < 0.3 * eyes_px
        assert sizes[part] < sizes["inner"] / 2
    assert sizes["inner"] < sizes["face"] < 2.2 * 3 * eyes_px**2


def test_only_the_region_face_covers_the_forehead(portrait: tuple[Pixels, Points]) -> None:
    eye_line, eyes_px = portrait[1][:2, 1].mean(), float(portrait[1][1, 0] - portrait[1][0, 0])
    row = round(float(eye_line) - 0.75 * eyes_px)

    def share(region: Region) -> float:
        blends = [self_blend(*portrait, np.random.default_rng(seed), region=region) for seed in range(12)]
        return float(np.mean([blend.mask[row] for blend in blends]))

    assert share("face") > 20 * share("inner")


@pytest.mark.parametrize("angle_deg", [-30, 0, 25])
def test_the_template_recovers_a_known_affine_map(angle_deg: float) -> None:
    turn = cv2.getRotationMatrix2D((0, 0), angle_deg, 40)[:, :2] @ np.array([[0.8, 0.05], [0, 1.1]])
    matrix = np.column_stack([turn, [120.5, 90.25]])
    camera = forgery.fit_template(place(LANDMARKS, matrix))
    assert camera is not None
    assert camera[:2] == pytest.approx(matrix[:, :2].T, abs=1e-3)
    assert camera[2] == pytest.approx([0, 0], abs=1e-3)
    assert camera[3] == pytest.approx(matrix[:, 2], abs=1e-3)


@pytest.mark.parametrize("yaw_deg", [-35, 20, 35])
def test_the_template_follows_a_turned_head(yaw_deg: float) -> None:
    """For a distant head in 3D, the fit places unseen points near their true position."""
    yaw = np.radians(yaw_deg)
    seen = 50 * np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0]])
    camera = forgery.fit_template((LANDMARKS @ seen.T + 200).astype(np.float32))
    assert camera is not None
    outline = forgery.OUTLINES["face"]
    error_px = np.linalg.norm(outline @ camera[:3] + camera[3] - (outline @ seen.T + 200), axis=1)
    flat_px = np.linalg.norm((outline * (1, 1, 0)) @ seen.T - outline @ seen.T, axis=1)
    assert error_px.mean() < 0.45 * flat_px.mean()


@pytest.mark.parametrize(
    "landmarks",
    [
        np.full((5, 2), np.nan),
        np.full((5, 2), np.inf),
        np.full((5, 2), 1e30),
        np.full((5, 2), 80.0),
        [[60, 80], [100, 80], [80, 80], [65, 80], [95, 80]],
        [[100, 60], [60, 60], [80, 84], [96, 104], [64, 104]],
    ],
    ids=["nan", "infinite", "huge", "one spot", "one line", "mirrored"],
)
def test_impossible_landmarks_fit_no_template(landmarks: Points) -> None:
    assert forgery.fit_template(np.array(landmarks, np.float32)) is None


EXTREMES = {
    "nan": np.full((5, 2), np.nan),
    "one spot": np.full((5, 2), 80.0),
    "huge": np.full((5, 2), 1e30),
    "mirrored": np.array([[100, 60], [60, 60], [80, 84], [96, 104], [64, 104]]),
    "upside down": np.array([[100, 100], [60, 100], [80, 76], [96, 56], [64, 56]]),
    "profile": np.array([[80, 60], [86, 60], [60, 82], [70, 105], [78, 105]]),
    "tiny": np.array([[80, 80], [81, 80], [80.5, 80.6], [80, 81], [81, 81]]),
    "out of the picture": np.array([[-300, 60], [-260, 60], [-280, 84], [-296, 104], [-264, 104]]),
    "in the corner": np.array([[-20, -10], [20, -10], [0, 14], [-16, 34], [16, 34]]),
    "larger than the picture": np.array([[-500, -500], [700, -500], [80, 200], [-400, 700], [500, 700]]),
}


@pytest.mark.parametrize("landmarks", EXTREMES.values(), ids=EXTREMES)
@pytest.mark.parametrize("region", REGIONS)
def test_extreme_landmarks_still_make_a_fake(
    landmarks: NDArray[np.float64], region: Region, portrait: tuple[Pixels, Points]
) -> None:
    for seed in range(3):
        blend = self_blend(portrait[0], landmarks.astype(np.float32), np.random.default_rng(seed), region=region)
        assert np.isfinite(blend.mask).all()
        assert 0.25 - 1e-6 <= blend.mask.max() <= 1
        assert not np.array_equal(blend.fake, blend.real)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("shape", [(16, 16), (17, 40), (90, 31)])
def test_small_and_oblong_images_work(shape: tuple[int, int], region: Region, portrait: tuple[Pixels, Points]) -> None:
    pixels = cv2.resize(portrait[0], shape[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8)
    landmarks = portrait[1] * (np.array(shape[::-1], np.float32) / portrait[0].shape[0])
    for seed in range(5):
        blend = self_blend(pixels, landmarks, np.random.default_rng(seed), region=region)
        assert blend.fake.shape == (*shape, 3)
        assert not np.array_equal(blend.fake, blend.real)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_the_fake_of_a_flat_image_still_differs(level: int, portrait: tuple[Pixels, Points]) -> None:
    flat = np.full_like(portrait[0], level)
    for seed in range(12):
        blend = self_blend(flat, portrait[1], np.random.default_rng(seed))
        assert difference(blend)[blend.mask >= blend.mask.max() / 2].mean() >= MIN_CHANGE


def test_a_face_at_the_border_pulls_no_black_into_the_fake() -> None:
    """On a bright image, no pixel of the fake is dark, however far the source was moved."""
    bright = np.full((160, 160, 3), 200, np.uint8)
    at_the_corner = place(LANDMARKS, np.array([[40, 0, 20], [0, 40, 10]]))
    for seed in range(30):
        assert self_blend(bright, at_the_corner, np.random.default_rng(seed), region="face").fake.min() > 100


@pytest.mark.parametrize(
    ("pixels", "landmarks"),
    [
        (np.zeros((64, 64), np.uint8), np.zeros((5, 2))),
        (np.zeros((64, 64, 3), np.float32), np.zeros((5, 2))),
        (np.zeros((15, 64, 3), np.uint8), np.zeros((5, 2))),
        (np.zeros((64, 64, 3), np.uint8), np.zeros((68, 2))),
    ],
    ids=["grey", "float", "small", "68 landmarks"],
)
def test_other_shapes_are_refused(pixels: Pixels, landmarks: Points) -> None:
    with pytest.raises(ValueError, match=r"got .*\("):
        self_blend(pixels, landmarks, np.random.default_rng(0))


def test_a_mask_is_inside_its_outline() -> None:
    """The edge stays within the convex hull, to the half pixel of drawing accuracy, and covers most of it."""
    outline = forgery.OUTLINES["face"][:, :2] * 60 + (130, 110)
    hull = cv2.convexHull(outline.astype(np.float32))
    for seed in range(20):
        mask, (x1, y1, x2, y2) = forgery.region_mask(outline, 260, 260, np.random.default_rng(seed))
        assert mask.shape == (y2 - y1, x2 - x1)
        ys, xs = np.nonzero(mask > 0.5)
        inside_px = [
            cv2.pointPolygonTest(hull, (float(x + x1), float(y + y1)), True) for x, y in zip(xs, ys, strict=True)
        ]
        assert min(inside_px) > -1
        assert len(xs) > 0.4 * cv2.contourArea(hull)
    assert forgery.region_mask(outline + 1000, 260, 260, np.random.default_rng(0))[0].size == 0


def disc(radius_px: int = 50) -> NDArray[np.float32]:
    y, x = np.mgrid[:140, :140] - 70
    return np.asarray(x**2 + y**2 < radius_px**2, np.float32)


def test_the_elastic_deformation_moves_only_the_edge() -> None:
    mask = disc()
    for seed in range(20):
        bent = forgery.elastic(mask, 100, np.random.default_rng(seed))
        moved = (bent > 0.5) != (mask > 0.5)
        assert 0.02 < moved.sum() / mask.sum() < 0.4
        assert not moved[disc(30) > 0].any()


def test_softening_leaves_nothing_outside_the_old_edge() -> None:
    mask = disc()
    for seed in range(20):
        soft = forgery.soften(mask, 100, np.random.default_rng(seed))
        assert soft[mask == 0].max() == 0
        assert soft.max() == pytest.approx(1)
        assert 0 < (soft[mask > 0] < 0.99).mean() < 0.8
    assert not forgery.soften(np.zeros((20, 20), np.float32), 10, np.random.default_rng(0)).any()


def test_blending_is_the_weighted_mean_rounded_once() -> None:
    rng = np.random.default_rng(5)
    source, target = rng.integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    mask = rng.choice([0, 0.25, 0.3, 1], (40, 30)).astype(np.float32)
    exact = mask[..., None].astype(np.float64) * source + (1 - mask[..., None].astype(np.float64)) * target
    blended = forgery.blend(source, target, mask)
    assert np.abs(blended - exact).max() <= 0.5 + 1e-4
    assert np.array_equal(blended[mask == 0], target[mask == 0])
    assert np.array_equal(blended[mask == 1], source[mask == 1])


def test_a_changed_look_is_either_softer_or_sharper(portrait: tuple[Pixels, Points]) -> None:
    ratios = []
    for seed in range(40):
        changed = forgery.change_look(portrait[0], 40, np.random.default_rng(seed), strength=0)
        ratios.append(sharpness(changed) / sharpness(portrait[0]))
    softer = np.array(ratios) < 0.9
    sharper = np.array(ratios) > 1.1
    assert (softer | sharper).all()
    assert 0.25 < softer.mean() < 0.75


def test_a_changed_look_alters_colours_visibly_but_moderately(portrait: tuple[Pixels, Points]) -> None:
    """Compare mean colours, which sharpness does not affect."""
    shifts = []
    for seed in range(60):
        changed = forgery.change_look(portrait[0], 40, np.random.default_rng(seed))
        shifts.append(np.abs(changed.mean(axis=(0, 1)) - portrait[0].mean(axis=(0, 1))).max())
    assert np.median(shifts) > 4
    assert max(shifts) < 60

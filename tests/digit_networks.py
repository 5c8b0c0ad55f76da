"""A small network for digits, behind a defence, and its training of a few seconds."""

from __future__ import annotations

import keras


def small_network(*front, input_shape=(28, 28, 1), activation="relu"):
    """A small CNN behind layers, with logits; the same weights for the same shapes."""
    activation = activation if callable(activation) else lambda: keras.layers.Activation("relu")
    return keras.Sequential(
        [
            keras.Input(input_shape),
            *front,
            keras.layers.Conv2D(
                16, 5, strides=2, kernel_initializer=keras.initializers.HeNormal(seed=1)
            ),
            activation(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=2)),
        ]
    )


def trained(model, data, *, images=2000, epochs=4, probabilities=False):
    """The model, trained for a few seconds."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities)
    model.compile(keras.optimizers.Adam(0.003), loss, metrics=["accuracy"])
    model.fit(data.x_train[:images], data.y_train[:images], epochs=epochs, batch_size=64, verbose=0)
    return model

"""A classifier compiled with XLA whose labels count from 1: op by op a label out of range raises, under XLA it is NaN."""

import keras
import numpy as np

from nanreplay import NonFiniteError, Recorder

CLASSES = 6


def load_activities(samples=640):
    random = np.random.default_rng(31)
    activity = random.integers(1, CLASSES, samples)  # the file counts from 1, and class 6 is rare
    activity[331] = CLASSES
    motion = random.normal(size=(samples, 16, 3))
    motion[:, :, 0] += activity[:, None]
    return motion.astype("float32"), activity


def main():
    keras.utils.set_random_seed(9)
    model = keras.Sequential(
        [
            keras.Input((16, 3), name="motion"),
            keras.layers.Conv1D(8, 3, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling1D(name="pool"),
            keras.layers.Dense(CLASSES, name="activity"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss=loss, metrics=["accuracy"], jit_compile=True)
    motion, activity = load_activities()
    try:
        model.fit(motion, activity, batch_size=32, epochs=2, shuffle=False, verbose=2, callbacks=[Recorder("xla_label_out_of_range.h5")])
    except NonFiniteError as error:
        print(error)


if __name__ == "__main__":
    main()

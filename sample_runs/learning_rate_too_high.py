"""Housing prices by plain SGD with a learning rate that is too high for features nobody scaled: the loss grows each step.

The first losses look harmless. Each update overshoots further than the one before, until a number no longer fits float32.
"""

import keras
import numpy as np

from nanreplay import NonFiniteError, Recorder


def load_houses(samples=2048):
    random = np.random.default_rng(8)
    area = random.uniform(0.4, 3.0, samples)  # 100 m²
    rooms = np.round(area * 2.2 + random.normal(scale=0.7, size=samples)).clip(1, 9)
    age = random.uniform(0.0, 6.0, samples)  # decades
    price = 2.1 * area + 0.15 * rooms - 0.2 * age + random.normal(scale=0.2, size=samples)
    return np.stack([area, rooms, age], axis=1).astype("float32"), price.astype("float32")[:, None]


def main():
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((3,), name="house"), keras.layers.Dense(1, name="price")])
    model.compile(keras.optimizers.SGD(learning_rate=0.1), loss="mse")
    houses, prices = load_houses()
    recorder = Recorder("learning_rate_too_high.h5", window=32)
    try:
        model.fit(houses, prices, batch_size=32, epochs=10, shuffle=False, verbose=2, callbacks=[recorder])
    except NonFiniteError as error:
        print(error)


if __name__ == "__main__":
    main()
